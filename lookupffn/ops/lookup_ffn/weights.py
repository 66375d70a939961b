"""What the whole feed-forward takes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(eq=False, slots=True)
class LookupWeights:
    """What a LookupFFN has learned: d inputs, o outputs, T tables of S = 2^tau rows, N probes.

    Attributes:
        projection: BH4's [r, 4, G, b, b], or dense [T * tau, d].
        projection_bias: [T * tau].
        table: [T, S, o], floating point, or int8 with scales.
        bias: [o].
        scales: [T, S] float32 of int8 tables: row = scale * integers. None for other tables.
        alpha: weight of BH4(x) against x itself.
        num_probes: N.
        normaliser: what the softmax of the scores runs over, see ``hash_scores``.
    """

    projection: Tensor
    projection_bias: Tensor
    table: Tensor
    bias: Tensor
    scales: Tensor | None
    alpha: float
    num_probes: int
    normaliser: str = "all"
