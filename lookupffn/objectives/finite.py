"""NaN and infinity in a model: found, named, and never taken for a result."""

from __future__ import annotations

import math

import torch
from accelerate import Accelerator
from torch import nn

from lookupffn.distributed.processes import any_process
from lookupffn.distributed.sharding import local
from lookupffn.errors import UserError


class NonFiniteError(UserError):
    """The loss, a gradient or a weight became NaN or infinite."""


def finite_weights(model: nn.Module, accelerator: Accelerator) -> bool:
    """Whether all weights are finite, on every process."""
    # one synchronisation for all of them
    finite = torch.stack([torch.isfinite(local(p.detach())).all() for p in model.parameters()]).all()
    return not any_process(accelerator, not finite)


def check_weights(model: nn.Module, step: int, accelerator: Accelerator) -> None:
    """Raises a NonFiniteError where a weight is NaN or infinite: nothing to keep as a checkpoint."""
    if not finite_weights(model, accelerator):
        raise NonFiniteError(f"step {step}: {describe_non_finite(model)}")


def check_validation(loss: float, where: str, model: nn.Module) -> None:
    """Raises a NonFiniteError where a validation loss is NaN or infinite."""
    if not math.isfinite(loss):
        raise NonFiniteError(f"{where}: validation loss {loss}; {describe_non_finite(model)}")


def describe_non_finite(model: nn.Module) -> str:
    """Which parameters, in one line."""
    named = list(model.named_parameters())
    weights = [n for n, p in named if not torch.isfinite(local(p)).all()]
    gradients = [n for n, p in named if p.grad is not None and not torch.isfinite(local(p.grad)).all()]
    kind, names = ("weights", weights) if weights else ("gradients", gradients)
    if not names:
        return "weights and gradients are finite"
    return f"non-finite {kind} in {len(names)} parameters: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
