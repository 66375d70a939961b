"""The fused feed-forward by the C++ kernels (csrc/lookup_ffn.cpp)."""

import torch
from torch import Tensor

from lookupffn.ops.library import kernels_available
from lookupffn.ops.lookup.cpu import declines_options
from lookupffn.ops.lookup_ffn import operator  # noqa: F401 the schemas
from lookupffn.ops.lookup_ffn.weights import LookupWeights
from lookupffn.ops.transforms import transformed

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
        and x_Md.device.type == table.device.type == projection.device.type == "cpu"
        and not declines_options(table.shape[1], weights.num_probes, weights.normaliser)
        and not (
            torch.is_grad_enabled()
            and any(t.requires_grad for t in (x_Md, table, projection, weights.projection_bias, weights.bias))
        )
        and not transformed()
        and kernels_available()
    )
    return None if takes else ""


def lookup_ffn(x_Md: Tensor, weights: LookupWeights) -> Tensor:
    """See lookupffn.ops.lookup_ffn.lookup_ffn; for what is not declined."""
    return torch.ops.lookupffn.lookup_ffn.default(x_Md.contiguous(), *arguments(x_Md, weights))


def arguments(x_Md: Tensor, weights: LookupWeights, folded: Tensor | None = None) -> tuple:
    """What the operator takes after x; ``folded``: the projection as ``fold_projection`` made it, if it was."""
    projection, projection_bias, scales = weights.projection, weights.projection_bias, weights.scales
    if projection.dim() == 2:
        projection, projection_bias = _as(projection, x_Md.dtype), _as(projection_bias, x_Md.dtype)
    return (
        projection.contiguous(),
        _as(projection_bias, projection_bias.dtype if projection_bias.dtype in _INPUT_TYPES else torch.float32),
        weights.table.contiguous(),
        None if scales is None else _as(scales, torch.float32),
        _as(weights.bias, torch.float32),
        weights.alpha,
        weights.num_probes,
        folded,
    )


def _as(t: Tensor, dtype: torch.dtype) -> Tensor:
    return t if t.dtype is dtype and t.is_contiguous() else t.to(dtype).contiguous()
