"""Several processes as one: what they share, gather and sum."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs, broadcast_object_list
from transformers.utils.logging import disable_progress_bar

from lookupffn.distributed.environment import MIXED_PRECISION, refuse_environment
from lookupffn.distributed.sharding import choose_sharding
from lookupffn.errors import UserError


def start_accelerator(precision: str | None = None, accumulation: int = 1) -> Accelerator:
    """accelerate for this run; a sweep's runs follow each other in one process, each with its own settings.

    Args:
        precision: training.precision; None for an evaluation, which is in float32.
        accumulation: micro-batches of a step.

    Raises:
        UserError: the environment asks for something else.
    """
    refuse_environment(precision, accumulation)
    disable_progress_bar()  # transformers' own, for every file of a checkpoint
    AcceleratorState._reset_state()
    GradientState._reset_state()
    # without a GPU accelerate connects several processes only if it is told to
    several_on_cpu = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available()
    accelerator = Accelerator(
        cpu=several_on_cpu,
        mixed_precision=MIXED_PRECISION[precision or "fp32"],
        # a plugin, since accelerate prefers its environment to a number
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=accumulation),
        dynamo_backend="no",
        # one process may prepare a corpus for hours while the others wait
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=24))],
    )
    choose_sharding(accelerator)
    return accelerator


def processes(accelerator: Accelerator) -> dict[str, Any]:
    """How many processes a run has, and how they share the work, for its summary."""
    return {"processes": accelerator.num_processes, "distributed": accelerator.distributed_type.value}


def any_process(accelerator: Accelerator, condition: object) -> bool:
    """Whether a condition holds on at least one process; all of them must ask."""
    if accelerator.num_processes == 1:
        return bool(condition)
    return bool(accelerator.reduce(torch.tensor(float(bool(condition)), device=accelerator.device), reduction="sum"))


def sum_over(accelerator: Accelerator) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Adds a float64 tensor over all processes; None where there is one."""
    if accelerator.num_processes == 1:
        return None
    return lambda tensor: accelerator.reduce(tensor.to(accelerator.device), reduction="sum").cpu()


def broadcast(accelerator: Accelerator, value: Any) -> Any:
    """The main process's value, on every process."""
    if accelerator.num_processes == 1:
        return value
    return broadcast_object_list([value], from_process=0)[0]


def on_main(accelerator: Accelerator, function: Callable[[], Any]) -> Any:
    """Runs something on the main process only; its error ends all of them. None on the others."""
    value, error = None, None
    if accelerator.is_main_process:
        try:
            value = function()
        except UserError as raised:
            error = raised
    message = broadcast(accelerator, None if error is None else str(error))
    if message is not None:
        raise error or UserError(message)
    return value
