"""What the whole feed-forward takes.

Dimensions: d hidden size, T tables, tau bits, S = 2^tau, N probes, b block size, G blocks, r copies.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lookupffn.ops.lookup_ffn.prepared import FoldedProjection


@dataclass(eq=False)
class LookupWeights:
    """What a LookupFFN has learned.

    Attributes:
        projection: BH4's [r, 4, G, b, b], or dense [T * tau, d].
        projection_bias: [T * tau].
        table: [T, S, d], floating point, or int8 with scales.
        bias: [d].
        scales: [T, S] float32 of int8 tables: row = scale * integers. None for other tables.
        alpha: weight of BH4(x) against x itself.
        num_probes: N.
        normaliser: what the softmax of the scores runs over, see ``hash_scores``.
        folded: where a backend keeps a prepared form of the projection from call to call.
    """

    projection: Tensor
    projection_bias: Tensor
    table: Tensor
    bias: Tensor
    scales: Tensor | None
    alpha: float
    num_probes: int
    normaliser: str
    folded: FoldedProjection
