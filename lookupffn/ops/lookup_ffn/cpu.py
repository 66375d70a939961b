"""The fused feed-forward by the C++ kernels (csrc/lookup_ffn.cpp)."""

import torch
from torch import Tensor

from lookupffn.ops.library import kernels_available
from lookupffn.ops.lookup.cpu import declines_options
from lookupffn.ops.lookup_ffn import operator  # noqa: F401 the schemas
from lookupffn.ops.lookup_ffn.weights import LookupWeights

_LEAST_FOR_DIGITS = 96  # tokens, as in csrc/lookup_ffn.cpp
_INPUT_TYPES = (torch.float32, torch.bfloat16)
_TABLE_TYPES = (torch.float32, torch.bfloat16, torch.int8)


def declines(x_Md: Tensor, weights: LookupWeights) -> str | None:
    """Whether the fused kernel takes a feed-forward: no gradients, float32 or bfloat16 on the CPU, few probes.

    Returns:
        None if it does; "" if not, without a reason, since the operations that then run in its place give theirs.
    """
    table, projection = weights.table, weights.projection
    takes = (
        x_Md.dtype in _INPUT_TYPES
        and table.dtype in _TABLE_TYPES
        and projection.dtype in _INPUT_TYPES
        and x_Md.shape[1] == table.shape[2]
        and all(t.device.type == "cpu" for t in (x_Md, table, projection))
        and not declines_options(table.shape[1], weights.num_probes, weights.normaliser)
        and not (
            torch.is_grad_enabled()
            and any(t.requires_grad for t in (x_Md, table, projection, weights.projection_bias, weights.bias))
        )
        and kernels_available()
    )
    return None if takes else ""


def lookup_ffn(x_Md: Tensor, weights: LookupWeights) -> Tensor:
    """See lookupffn.ops.lookup_ffn.lookup_ffn; for what it takes.

    Returns:
        [M, d] in the type of x.
    """
    projection, projection_bias = weights.projection, weights.projection_bias
    if projection.dim() == 5:
        size = projection.shape[2] * projection.shape[3]
        folded = weights.folded.of(projection, weights.alpha)
        projection_bias = _as(projection_bias, torch.float32)
    else:
        size = 0
        folded, projection_bias = _as(projection, x_Md.dtype), _as(projection_bias, x_Md.dtype)
    tokens, d = x_Md.shape
    digits = None
    # a compiled graph should hold for any number of tokens; other tables are served by other kernels
    if not torch.compiler.is_compiling() and tokens >= _LEAST_FOR_DIGITS and weights.table.dtype is torch.float32:
        digits = weights.folded.digits(projection, weights.alpha, d, projection_bias.shape[0])
    return torch.ops.lookupffn.lookup_ffn.default(
        x_Md.contiguous(),
        folded,
        projection_bias,
        weights.table.contiguous(),
        None if weights.scales is None else _as(weights.scales, torch.float32),
        _as(weights.bias, torch.float32),
        1.0 - weights.alpha,
        size,
        weights.num_probes,
        *(digits or (None, None)),
    )


def _as(t: Tensor, dtype: torch.dtype) -> Tensor:
    return t if t.dtype is dtype and t.is_contiguous() else t.to(dtype).contiguous()
