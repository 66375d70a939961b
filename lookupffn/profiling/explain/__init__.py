"""How long a feed-forward should take, by part, from cost and the machine alone. docs/hardware.md has the formulas.

A part's time is its arithmetic over the attainable peak or its bytes over the rate of the level where its working set
lies, whichever is longer; parts follow one another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lookupffn.profiling.attained import attained
from lookupffn.profiling.explain.float_lookup import FloatLookup
from lookupffn.profiling.explain.gemm import gemm_parts
from lookupffn.profiling.explain.int8_lookup import Int8Lookup
from lookupffn.profiling.explain.work import has_tiles
from lookupffn.profiling.machine import Machine
from lookupffn.profiling.timing import Point

__all__ = ["Prediction", "gemm_parts", "has_tiles", "predict"]


@dataclass(frozen=True)
class Prediction:
    """Seconds a call.

    Attributes:
        lookup: by part: call, projection, transform, hash, gather, packing.
        gemm: by part: call, first product, activation, second product.
        binding: which of the machine's resources takes most of the lookup: arithmetic, cache, memory or calls.
    """

    lookup: Mapping[str, float]
    gemm: Mapping[str, float]
    binding: str

    @property
    def lookup_seconds(self) -> float:
        """All parts of the lookup."""
        return sum(self.lookup.values())

    @property
    def gemm_seconds(self) -> float:
        """All parts of GEMM."""
        return sum(self.gemm.values())

    @property
    def ratio(self) -> float:
        """How many times faster than GEMM."""
        return self.gemm_seconds / self.lookup_seconds


def predict(
    point: Point, machine: Machine, entropy: float | None = None, shares: Mapping[str, float] | None = None
) -> Prediction:
    """The time of a lookup and of GEMM beside it.

    Args:
        point: shape, tokens, precision and threads.
        machine: where.
        entropy: bits a code, as measured; tau if None, as with even codes.
        shares: what the kernels attain; attained.yaml's if None.
    """
    shares = attained() if shares is None else shares
    kind = Int8Lookup if point.precision == "int8" else FloatLookup
    lookup = kind(point, machine, point.bits if entropy is None else entropy, shares)
    return Prediction(lookup.parts(), gemm_parts(point, machine, shares), lookup.binding())
