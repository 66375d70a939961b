"""The lookup as torch knows it, whatever backend computes it: schemas, shapes of results, gradients.

Dimensions: M tokens, T tables, t = tau bits, S = 2^tau rows, N probes, d hidden size.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from lookupffn.ops.transforms import first_order

# stride: how many tokens codes and scores [T * N, stride] have room for
torch.library.define(
    "lookupffn::lookup_forward", "(Tensor z, Tensor table, int num_probes, SymInt stride) -> (Tensor, Tensor, Tensor)"
)
torch.library.define(
    "lookupffn::lookup_backward",
    "(Tensor grad_y, Tensor z, Tensor table, Tensor codes, Tensor scores, int num_probes, bool need_z, bool need_table)"
    " -> (Tensor, Tensor)",
)


@torch.library.register_fake("lookupffn::lookup_forward")
def _fake_forward(z: Tensor, table: Tensor, num_probes: int, stride: int) -> tuple[Tensor, Tensor, Tensor]:
    reads = (table.shape[0] * num_probes, stride)
    return z.new_empty(z.shape[0], table.shape[2]), z.new_empty(reads, dtype=torch.int32), z.new_empty(reads)


@torch.library.register_fake("lookupffn::lookup_backward")
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
    z, table, ctx.num_probes, _ = inputs
    _, codes, scores = output
    ctx.mark_non_differentiable(codes, scores)
    ctx.save_for_backward(z, table, codes, scores)


@first_order
def _backward(ctx: FunctionCtx, grad_y: Tensor, *_: Tensor | None) -> tuple[Tensor | None, Tensor | None, None, None]:
    z, table, codes, scores = ctx.saved_tensors
    need_z, need_table = ctx.needs_input_grad[:2]
    grad_z, grad_table = torch.ops.lookupffn.lookup_backward(
        grad_y.contiguous(), z, table, codes, scores, ctx.num_probes, need_z, need_table
    )
    return grad_z if need_z else None, grad_table if need_table else None, None, None


torch.library.register_autograd("lookupffn::lookup_forward", _backward, setup_context=_setup)
