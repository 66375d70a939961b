"""Derivatives beyond first-order reverse mode: told apart, so that they are computed right or refused.

The hand-written gradients of the operations, and the kernels, know backward once. Under torch.func (vmap, grad, jvp,
jacrev, hessian) and forward-mode differentiation the references fall back on plain differentiable torch; a second
backward through a first (``create_graph=True``) is refused.
"""

import functools
from collections.abc import Callable

import torch
from torch.autograd import forward_ad

_REFUSAL = (
    b"a lookup's gradient cannot be differentiated by a second backward (create_graph=True); "
    b"for higher derivatives use torch.func: hessian, or jvp of grad"
)


def transformed() -> bool:
    """Whether a transform of torch.func or forward-mode differentiation is at work around this call."""
    if torch.compiler.is_compiling():
        return False
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def first_order(backward: Callable) -> Callable:
    """Decorator of a backward function: its results refuse to be differentiated.

    Unlike torch's ``once_differentiable`` also where the incoming gradient is a constant: a zero would be as wrong.
    """

    @functools.wraps(backward)
    def refusing(*arguments: object) -> tuple:
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return backward(*arguments)
        with torch.no_grad():
            results = backward(*arguments)
        tensors = [result for result in results if result is not None]
        refuse = torch._C._functions.DelayedError(_REFUSAL, len(tensors))
        refused = refuse(*(t.detach().requires_grad_() for t in tensors))
        refused = iter((refused,) if len(tensors) == 1 else refused)
        return tuple(None if result is None else next(refused) for result in results)

    return refusing
