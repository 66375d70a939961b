"""BH4 as torch knows it, whatever backend computes it: schemas, shapes of results, gradients."""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from lookupffn.ops.transforms import first_order

torch.library.define("lookupffn::bh4_forward", "(Tensor x, Tensor weight, Tensor bias, float skip, int size) -> Tensor")
torch.library.define(
    "lookupffn::bh4_backward",
    "(Tensor grad_z, Tensor x, Tensor weight, Tensor transposed, float skip, int size) -> (Tensor, Tensor, Tensor)",
)


@torch.library.register_fake("lookupffn::bh4_forward")
def _fake_forward(x: Tensor, weight: Tensor, bias: Tensor, skip: float, size: int) -> Tensor:
    return x.new_empty(x.shape[0], bias.shape[0])


@torch.library.register_fake("lookupffn::bh4_backward")
def _fake_backward(
    grad_z: Tensor, x: Tensor, weight: Tensor, transposed: Tensor, skip: float, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight), x.new_empty(grad_z.shape[1])


def _setup(ctx: FunctionCtx, inputs: tuple, output: Tensor) -> None:
    x, weight, _, ctx.skip, ctx.size = inputs
    ctx.save_for_backward(x, weight)


@first_order
def _backward(ctx: FunctionCtx, grad_z: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
    x, weight = ctx.saved_tensors
    transposed = weight.transpose(-1, -2).contiguous()
    gradients = torch.ops.lookupffn.bh4_backward(grad_z.contiguous(), x, weight, transposed, ctx.skip, ctx.size)
    return *gradients, None, None


torch.library.register_autograd("lookupffn::bh4_forward", _backward, setup_context=_setup)
