"""AdamW with the paper's parameter groups, and the learning rate as a function of how far the budget is used up."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from lookupffn.config.sections import OptimizerSettings
from lookupffn.errors import UserError
from lookupffn.layers import FeedForward

# of the peak: the least learning rate of a warm-up measured in time
FIRST_WARM = 0.01


def build_optimizer(model: nn.Module, settings: OptimizerSettings, device: torch.device) -> torch.optim.AdamW:
    """AdamW: weights decay; biases and LayerNorms (one-dimensional) do not; tables and hash as the settings say.

    Each group holds its ``lr_scale``, by which a scheduled learning rate is to be multiplied.
    """
    roles = {
        parameter: role
        for module in model.modules()
        if isinstance(module, FeedForward)
        for role, parameters in module.parameter_roles().items()
        for parameter in parameters
    }
    groups: dict[tuple[float, float], list[nn.Parameter]] = {(1.0, settings.weight_decay): [], (1.0, 0.0): []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            role = roles.get(parameter)
            scale = getattr(settings, f"{role}_lr_scale") if role else 1.0
            decay = getattr(settings, f"{role}_weight_decay") if role else None
            decay = settings.weight_decay if decay is None else decay
            groups.setdefault((scale, decay if parameter.ndim >= 2 else 0.0), []).append(parameter)
    settings_of_groups = [
        {"params": parameters, "weight_decay": decay, "lr_scale": scale}
        for (scale, decay), parameters in groups.items()
    ]
    fused = device.type in ("cpu", "cuda")
    return torch.optim.AdamW(
        settings_of_groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=fused or None, foreach=None
    )


def check_state(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Raises a UserError where a saved state is not of this AdamW's form, which a step would fail at."""
    try:
        wrong = _wrong_in(optimizer, state)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        wrong = " ".join(str(error).split())
    if wrong:
        raise UserError(f"the optimizer's state is not that of this model ({wrong})")


def _wrong_in(optimizer: torch.optim.Optimizer, state: Any) -> str | None:
    for old, new in zip(state["param_groups"], optimizer.state_dict()["param_groups"], strict=True):
        for name in old.keys() & new.keys():
            if not _alike(old[name], new[name]):
                return f"{name} is {old[name]!r:.80}"
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, values in state["state"].items():
        shapes = dict.fromkeys(("exp_avg", "exp_avg_sq"), parameters[number].shape) | {"step": torch.Size(())}
        for name, shape in shapes.items():
            t = values[name]
            if not torch.is_tensor(t) or not t.is_floating_point() or t.shape != shape:
                return f"{name} of parameter {number} is not a tensor of its shape"
    return None


def _alike(old: Any, new: Any) -> bool:
    """Whether two options of a group are of one type; its parameters have to be the same."""
    if isinstance(new, list | tuple):
        numbers = all(isinstance(value, float) for value in new)
        return len(old) == len(new) and (all(isinstance(value, float) for value in old) if numbers else old == new)
    if new is None or isinstance(new, bool):  # fused and foreach are also chosen by the device
        return old is None or isinstance(old, bool)
    return isinstance(old, int | float) and not isinstance(old, bool)


def learning_rate(settings: OptimizerSettings, *, step: int, total_steps: int | None, progress: float) -> float:
    """The learning rate of one update.

    Warm-up rises linearly to ``settings.lr``; the rest of the budget falls, linearly or along a cosine, towards zero.

    Args:
        settings: peak, schedule and warm-up.
        step: updates done before this one.
        total_steps: updates in the budget; None for a budget of minutes.
        progress: used-up part of a budget of minutes, 0 to 1 (not read otherwise).
    """
    if total_steps is not None:
        warmup = settings.warmup_steps
        if warmup is None:
            warmup = round((settings.warmup_ratio or 0.0) * total_steps)
        # counted from one: no update is spent at a learning rate of zero, neither the first nor the last
        warm = (step + 1) / warmup if step < warmup else 1.0
        decay = max(0, step - warmup) / max(1, total_steps - warmup)
    elif settings.warmup_steps is not None:
        # how much of the time these steps will take is not known, so the fall begins at once
        warm = (step + 1) / max(1, settings.warmup_steps)
        decay = progress
    else:
        ratio = settings.warmup_ratio or 0.0
        # the first update cannot know what share of the time it will take, and must not be wasted
        warm = max(progress / ratio, FIRST_WARM) if ratio else 1.0
        decay = max(0.0, progress - ratio) / (1.0 - ratio)
    decay = min(1.0, decay)
    shape = 1.0 - decay if settings.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * decay))
    return settings.lr * min(1.0, warm) * shape
