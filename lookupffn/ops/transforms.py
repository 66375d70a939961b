"""Derivatives beyond first-order reverse mode: told apart, so that they are computed right or refused.

The hand-written gradients of the operations, and the kernels, know backward once. Under torch.func (vmap, grad, jvp,
jacrev, hessian) and forward-mode differentiation the references fall back on plain differentiable torch; a second
backward through a first (``create_graph=True``) is refused.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import FunctionCtx

_REFUSAL = (
    b"this layer's gradient cannot be differentiated by a second backward (create_graph=True); "
    b"lookup and product_key have higher derivatives by torch.func: hessian, or jvp of grad"
)


def transformed() -> bool:
    """Whether a transform of torch.func or forward-mode differentiation is at work around this call."""
    if torch.compiler.is_compiling():
        return False
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def first_order(backward: Callable) -> Callable:
    """Decorator of a backward function: its results refuse to be differentiated.

    Unlike torch's ``once_differentiable`` also where the incoming gradient is a constant, and where gradients are asked
    for by name (``torch.autograd.grad``): what is cut out of the graph there would count as zero.
    """

    @functools.wraps(backward)
    def refusing(ctx: FunctionCtx, *gradients: Tensor | None) -> tuple:
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return backward(ctx, *gradients)
        with torch.no_grad():
            results = backward(ctx, *gradients)
        tensors = [result for result in results if result is not None]
        # the refusal follows everything that the results depend on
        sources = [t for t in (*ctx.saved_tensors, *gradients) if t is not None and t.requires_grad]
        refuse = torch._C._functions.DelayedError(_REFUSAL, len(tensors) + len(sources))
        refused = iter(refuse(*(t.detach().requires_grad_() for t in tensors), *sources))
        return tuple(None if result is None else next(refused) for result in results)

    return refusing


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.factor * grad, None


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """x itself, of any shape; its gradient times a factor."""
    if factor == 1:
        return x
    if transformed():
        constant = x.detach()
        return constant + factor * (x - constant)  # exactly x
    return _ScaledGradient.apply(x, factor) if x.requires_grad and torch.is_grad_enabled() else x
