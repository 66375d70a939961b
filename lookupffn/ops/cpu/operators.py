"""The C++ operators as torch knows them: what shapes they return, how they differentiate, and functions to call them.

Dimensions: M tokens, T tables, t = tau bits, S = 2^tau rows, N probes, d hidden size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from lookupffn.ops.cpu.folding import fold
from lookupffn.ops.cpu.load import available

if TYPE_CHECKING:
    from lookupffn.ops.lookup_ffn import LookupWeights

MAX_PROBES = 4  # the kernels keep the best few terms in registers; more are the reference's
_LEAST_FOR_DIGITS = 96  # tokens, as in kernels/inference.cpp
_INPUT_TYPES = (torch.float32, torch.bfloat16)
_TABLE_TYPES = (torch.float32, torch.bfloat16, torch.int8)


def _padded_tokens(tokens: int) -> int:
    """The stride of a read's codes and scores, as in kernels/gather.h: an odd number of 16 tokens."""
    return (((tokens + 15) // 16) // 2 * 2 + 1) * 16


def _fake_forward(z: Tensor, table: Tensor, num_probes: int) -> tuple[Tensor, Tensor, Tensor]:
    reads = (table.shape[0] * num_probes, _padded_tokens(z.shape[0]))
    return z.new_empty(z.shape[0], table.shape[2]), z.new_empty(reads, dtype=torch.int32), z.new_empty(reads)


def _fake_backward(
    grad_y: Tensor,
    z: Tensor,
    table: Tensor,
    codes: Tensor,
    scores: Tensor,
    num_probes: int,
    need_z: bool,
    need_table: bool,
) -> tuple[Tensor, Tensor]:
    grad_z = z.new_empty(z.shape[0] if need_z else 0, z.shape[1])
    return grad_z, z.new_empty(table.shape[0] if need_table else 0, *table.shape[1:])


def _setup(ctx: FunctionCtx, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    z, table, ctx.num_probes = inputs
    _, codes, scores = output
    ctx.mark_non_differentiable(codes, scores)
    ctx.save_for_backward(z, table, codes, scores)


def _backward(ctx: FunctionCtx, grad_y: Tensor, *_: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
    z, table, codes, scores = ctx.saved_tensors
    need_z, need_table = ctx.needs_input_grad[:2]
    grad_z, grad_table = torch.ops.lookupffn.lookup_backward(
        grad_y.contiguous(), z, table, codes, scores, ctx.num_probes, need_z, need_table
    )
    return grad_z if need_z else None, grad_table if need_table else None, None


def _fake_lookup_ffn(
    x: Tensor,
    projection: Tensor,
    projection_bias: Tensor,
    table: Tensor,
    scales: Tensor | None,
    bias: Tensor,
    skip: float,
    size: int,
    num_probes: int,
    digits: Tensor | None = None,
    digit_scales: Tensor | None = None,
) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _fake_bh4(x: Tensor, weight: Tensor, bias: Tensor, skip: float, size: int) -> Tensor:
    return x.new_empty(x.shape[0], bias.shape[0])


def _fake_bh4_backward(
    grad_z: Tensor, x: Tensor, weight: Tensor, transposed: Tensor, skip: float, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight), x.new_empty(grad_z.shape[1])


def _setup_bh4(ctx: FunctionCtx, inputs: tuple, output: Tensor) -> None:
    x, weight, _, ctx.skip, ctx.size = inputs
    ctx.save_for_backward(x, weight)


def _backward_bh4(ctx: FunctionCtx, grad_z: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
    x, weight = ctx.saved_tensors
    transposed = weight.transpose(-1, -2).contiguous()
    gradients = torch.ops.lookupffn.bh4_backward(grad_z.contiguous(), x, weight, transposed, ctx.skip, ctx.size)
    return *gradients, None, None


def register() -> None:
    """Tell torch about the operators of the library just loaded."""
    torch.library.register_fake("lookupffn::lookup_forward", _fake_forward)
    torch.library.register_fake("lookupffn::lookup_backward", _fake_backward)
    torch.library.register_fake("lookupffn::lookup_ffn", _fake_lookup_ffn)
    torch.library.register_fake("lookupffn::bh4_forward", _fake_bh4)
    torch.library.register_fake("lookupffn::bh4_backward", _fake_bh4_backward)
    torch.library.register_autograd("lookupffn::lookup_forward", _backward, setup_context=_setup)
    torch.library.register_autograd("lookupffn::bh4_forward", _backward_bh4, setup_context=_setup_bh4)


def serves_lookup(z_MTt: Tensor, table_TSd: Tensor, num_probes: int) -> bool:
    """Whether the kernels take a lookup: float32 on the CPU, few probes."""
    return (
        table_TSd.dtype is torch.float32
        and z_MTt.dtype is torch.float32
        and 1 <= num_probes <= min(MAX_PROBES, table_TSd.shape[1])
        and table_TSd.shape[1] >= 2
        and _on_cpu(z_MTt, table_TSd)
        and available()
    )


def lookup(z_MTt: Tensor, table_TSd: Tensor, num_probes: int) -> Tensor:
    """See lookupffn.ops.lookup; for tensors that ``serves_lookup`` accepts.

    Returns:
        [M, d] float32.
    """
    z = z_MTt.flatten(1).contiguous()
    return torch.ops.lookupffn.lookup_forward(z, table_TSd.contiguous(), num_probes)[0]


def serves_bh4_mix(x_Md: Tensor, weight: Tensor, bias: Tensor, alpha: float) -> bool:
    """Whether the kernels take a BH4 projection: float32 on the CPU."""
    tensors = (x_Md, weight, bias)
    return all(t.dtype is torch.float32 for t in tensors) and _on_cpu(*tensors) and available()


def bh4_mix(x_Md: Tensor, weight: Tensor, bias: Tensor, alpha: float) -> Tensor:
    """alpha * BH4(x) + (1 - alpha) * x + bias, [M, columns]; for tensors that ``serves_bh4_mix`` accepts."""
    size = weight.shape[2] * weight.shape[3]
    return torch.ops.lookupffn.bh4_forward(x_Md.contiguous(), fold(weight, alpha), bias.contiguous(), 1.0 - alpha, size)


def serves_lookup_ffn(x_Md: Tensor, weights: LookupWeights) -> bool:
    """Whether the fused kernel takes a feed-forward: no gradients, float32 or bfloat16 on the CPU, few probes.

    The kernels' scores are of the softmax over all sign vectors.
    """
    table, projection = weights.table, weights.projection
    if weights.normaliser != "all" or not 1 <= weights.num_probes <= min(MAX_PROBES, table.shape[1]):
        return False
    if x_Md.dtype not in _INPUT_TYPES or table.dtype not in _TABLE_TYPES or not _on_cpu(x_Md, table, projection):
        return False
    if projection.dtype not in _INPUT_TYPES or x_Md.shape[1] != table.shape[2]:
        return False
    if torch.is_grad_enabled() and any(
        t.requires_grad for t in (x_Md, table, projection, weights.projection_bias, weights.bias)
    ):
        return False
    return available()


def lookup_ffn(x_Md: Tensor, weights: LookupWeights) -> Tensor:
    """See lookupffn.ops.lookup_ffn; for what ``serves_lookup_ffn`` accepts.

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


def _on_cpu(*tensors: Tensor) -> bool:
    return all(t.device.type == "cpu" for t in tensors)
