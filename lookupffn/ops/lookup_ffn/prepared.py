"""Projections as the fused kernel reads them, prepared once.

Dimensions: r copies, D padded size, b block size, G = D / b.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lookupffn.ops.bh4 import reference
from lookupffn.ops.bh4.cpu import fold

_ROWS = 64
_SPEED_OF_TILES = 3  # products of a multiplied-out matrix in the time of one of BH4's


def multiplied_out(projection: Tensor, alpha: float, d: int, columns: int) -> Tensor:
    """The one matrix that a projection is.

    Args:
        projection: [r, 4, G, b, b], or dense [columns, d].
        alpha: weight of BH4(x) in the mix with x.
        d: hidden size.
        columns: T * tau.

    Returns:
        [columns, d] float32: z = matrix @ x + bias.
    """
    if projection.dim() == 2:
        return projection.float()
    device = projection.device
    matrix = torch.empty(columns, d, dtype=torch.float32, device=device)
    weight = projection.double()
    for first in range(0, d, _ROWS):  # a few at a time: float64 copies of all of it would be most of a call's memory
        unit = torch.eye(min(_ROWS, d - first), d - first, dtype=torch.float64, device=device)
        unit = torch.nn.functional.pad(unit, (first, 0))
        matrix[:, first : first + _ROWS] = reference.bh4_mix(unit, weight, unit.new_zeros(columns), alpha).t()
    return matrix


class FoldedProjection:
    """Prepared forms of a projection, kept from call to call until the weight changes.

    A change is seen by torch's version counter, which counts in-place writes except those of fused optimizers and those
    through ``.data``. So a forward with gradients and a switch between training and evaluation forget them as well;
    after any other such write call ``clear``.
    """

    def __init__(self) -> None:
        self._kept: dict[str, tuple[tuple, Any]] = {}

    def __deepcopy__(self, memo: dict) -> FoldedProjection:
        return FoldedProjection()

    def __reduce__(self) -> tuple:
        return FoldedProjection, ()

    def clear(self) -> None:
        """Forget the prepared forms."""
        self._kept.clear()

    def of(self, weight: Tensor, alpha: float) -> Tensor:
        """``fold(weight, alpha)``, from the cache if the weight is the same as last time. No gradient."""
        if _has_no_version(weight):
            return fold(weight.detach(), alpha)
        return self._keep("folded", weight, (alpha,), lambda: fold(weight.detach(), alpha))

    def digits(self, projection: Tensor, alpha: float, d: int, columns: int) -> tuple[Tensor, Tensor] | None:
        """The multiplied-out projection for the CPU's int8 matrix tiles; None where something else is faster.

        Arguments are those of ``multiplied_out``.

        Returns:
            Digits and scales, as kernels/projection_digits.h has them.
        """
        # splitting takes as long as a call of hundreds of tokens: not without a cache
        if _has_no_version(projection) or d * columns > _most_multiplied_out(projection) or not _has_tiles():
            return None

        def split() -> tuple[Tensor, Tensor] | None:
            digits, scales = torch.ops.lookupffn.split_projection(
                multiplied_out(projection.detach(), alpha, d, columns).contiguous()
            )
            return (digits, scales) if digits.numel() else None

        return self._keep("digits", projection, (alpha, d, columns), split)

    def _keep(self, form: str, weight: Tensor, settings: tuple, make: Callable[[], Any]) -> Any:
        key = (weight.data_ptr(), weight._version, weight.dtype, weight.shape, settings)
        kept = self._kept.get(form)
        if kept is None or kept[0] != key:
            # an inference tensor could not be used outside of inference mode later
            with torch.inference_mode(False), torch.no_grad():
                kept = self._kept[form] = key, make()
        return kept[1]


def _has_no_version(weight: Tensor) -> bool:
    return torch.compiler.is_compiling() or weight.is_inference()


@cache
def _has_tiles() -> bool:
    matrix = torch.zeros(1, 1, dtype=torch.float32, device="cpu")
    return torch.ops.lookupffn.split_projection(matrix)[0].numel() > 0


def _most_multiplied_out(projection: Tensor) -> int:
    """Products of a multiplied-out matrix up to which it is faster than the projection as it stands."""
    if projection.dim() == 2:
        return projection.numel()
    return _SPEED_OF_TILES * projection.numel()
