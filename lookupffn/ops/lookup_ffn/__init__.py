"""The whole feed-forward: project, hash, look up, add. One operation, so that a backend may fuse it.

Dimensions: M tokens, d hidden size, T tables, tau bits, S = 2^tau, N probes.
"""

from torch import Tensor

from lookupffn.ops.backend import COMPOSITE, register, select
from lookupffn.ops.bh4 import next_power_of_two
from lookupffn.ops.lookup_ffn import cpu, in_steps
from lookupffn.ops.lookup_ffn.in_steps import hash_inputs
from lookupffn.ops.lookup_ffn.prepared import PreparedInt8, PreparedLookup, quantized
from lookupffn.ops.lookup_ffn.weights import LookupWeights

__all__ = ["LookupWeights", "PreparedInt8", "PreparedLookup", "hash_inputs", "lookup_ffn", "quantized"]

register("lookup_ffn", "cpu", cpu.lookup_ffn, cpu.declines)
register("lookup_ffn", COMPOSITE, in_steps.lookup_ffn)


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
        TypeError: x is not floating point.
    """
    if not x_Md.dtype.is_floating_point:
        raise TypeError(f"a lookup takes floating-point inputs, not {x_Md.dtype}")
    projection = weights.projection
    bh4 = projection.dim() == 5
    size = projection.shape[2] * projection.shape[3] if bh4 else projection.shape[1]
    if x_Md.dim() != 2 or (next_power_of_two(x_Md.shape[1]) if bh4 else x_Md.shape[1]) != size:
        padded = " (or what is padded to it)" if bh4 else ""
        raise ValueError(f"x must be [tokens, {size}]{padded}, not {list(x_Md.shape)}")
    return select("lookup_ffn", x_Md, weights)(x_Md, weights)
