"""The feed-forward as three operations, each on the backend that suits it: project, look up, add the bias.

Differentiable, and so what training runs; a fused backend takes over where no gradients are wanted.
"""

import torch
from torch import Tensor

from lookupffn.ops.bh4 import bh4_mix
from lookupffn.ops.lookup import lookup
from lookupffn.ops.lookup_ffn.weights import LookupWeights


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
        z = bh4_mix(x_Md, projection.to(x_Md.dtype), bias, weights.alpha)
    else:
        z = torch.nn.functional.linear(x_Md, projection, bias)
    tables = weights.table.shape[0]
    return z.view(x_Md.shape[0], tables, bias.shape[0] // tables)


def lookup_ffn(x_Md: Tensor, weights: LookupWeights) -> Tensor:
    """See lookupffn.ops.lookup_ffn.lookup_ffn."""
    table = weights.table if weights.scales is None else weights.table * weights.scales.unsqueeze(-1)
    z = hash_inputs(x_Md, weights)
    # scores are exponentials of sums: kept in float32 even where autocast ran the projection in half precision
    return (lookup(z.to(table.dtype), table, weights.num_probes, weights.normaliser) + weights.bias).to(x_Md.dtype)
