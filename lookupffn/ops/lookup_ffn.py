"""The whole feed-forward: project, hash, look up, add. One operation, so that a backend may fuse it.

Dimensions: M tokens, d hidden size, D the next power of two, T tables, tau bits, S = 2^tau, N probes, b block size,
G = D / b, r copies.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lookupffn.ops import cpu
from lookupffn.ops.backend import register, select
from lookupffn.ops.bh4 import bh4_mix, next_power_of_two
from lookupffn.ops.lookup import lookup


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
    folded: cpu.FoldedProjection


@register("bh4_mix", "reference")
def _bh4_mix(x_Md: Tensor, projection: Tensor, bias: Tensor, alpha: float) -> Tensor:
    return bh4_mix(x_Md, projection, alpha, bias.shape[0]) + bias


register("bh4_mix", "cpu", serves=cpu.serves_bh4_mix)(cpu.bh4_mix)


def hash_inputs(x_Md: Tensor, weights: LookupWeights) -> Tensor:
    """z, what the codes are the signs of.

    Args:
        x_Md: [M, d].
        weights: of the layer.

    Returns:
        [M, T, tau].
    """
    projection, bias = weights.projection, weights.projection_bias
    if projection.dim() == 5:
        arguments = x_Md, projection.to(x_Md.dtype), bias, weights.alpha
        z = select("bh4_mix", *arguments)(*arguments)
    else:
        z = torch.nn.functional.linear(x_Md, projection, bias)
    tables = weights.table.shape[0]
    return z.view(x_Md.shape[0], tables, bias.shape[0] // tables)


@register("lookup_ffn", "reference")
def _reference(x_Md: Tensor, weights: LookupWeights) -> Tensor:
    if torch.is_grad_enabled():
        weights.folded.clear()  # an update is likely to follow, and torch's fused optimizers do not count theirs
    table = weights.table if weights.scales is None else weights.table * weights.scales.unsqueeze(-1)
    z = hash_inputs(x_Md, weights)
    # scores are exponentials of sums: kept in float32 even where autocast ran the projection in half precision
    return (lookup(z.to(table.dtype), table, weights.num_probes, weights.normaliser) + weights.bias).to(x_Md.dtype)


register("lookup_ffn", "cpu", serves=cpu.serves_lookup_ffn)(cpu.lookup_ffn)


def lookup_ffn(x_Md: Tensor, weights: LookupWeights) -> Tensor:
    """y = bias + sum over tables k and probes n of score[k, n] * table[k, code[k, n]].

    Args:
        x_Md: [M, d].
        weights: of the layer.

    Returns:
        [M, o] in the type of x, o the size of the tables' rows; differentiable in x and in all weights that are
        floating point.

    Raises:
        ValueError: x is not [M, d] of the d that the projection is made for.
    """
    projection = weights.projection
    bh4 = projection.dim() == 5
    size = projection.shape[2] * projection.shape[3] if bh4 else projection.shape[1]
    if x_Md.dim() != 2 or (next_power_of_two(x_Md.shape[1]) if bh4 else x_Md.shape[1]) != size:
        padded = " (or what is padded to it)" if bh4 else ""
        raise ValueError(f"x must be [tokens, {size}]{padded}, not {list(x_Md.shape)}")
    return select("lookup_ffn", x_Md, weights)(x_Md, weights)
