"""Several processes as one: what they share, gather and sum.

``accelerate launch`` and ``accelerate config`` pass on their settings in variables, which accelerate prefers to the
arguments of the program that it starts: those that ask for a computation that the config does not name are refused.

A sum of float32 numbers depends on their order, and the last bit of a gradient decides, some steps later, on which side
of a hyperplane a token falls and which table rows it reads: losses of lookup runs on one process and on two differ by
1e-4 within tens of steps. With ``training.micro_batches`` a step has the same parts on any number of processes, and
``ExactSum`` adds the parts in float64, where their order shows in no bit that float32 keeps (but for a rare tie in
rounding).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs, broadcast_object_list
from torch import nn
from transformers.utils.logging import disable_progress_bar

from lookupffn.distributed.sharding import choose_sharding
from lookupffn.errors import UserError

MIXED_PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
_NONE = ("", "no", "none", "false", "0")
# engines and modes that nothing here trains or tests with
_UNSUPPORTED = (
    "ACCELERATE_USE_DEEPSPEED",
    "ACCELERATE_USE_MEGATRON_LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG",
    "ACCELERATE_USE_SAGEMAKER",
    "ACCELERATE_DOWNCAST_BF16",
    "ACCELERATE_FP8_BACKEND",
    "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION",
    "XLA_USE_BF16",
    "XLA_DOWNCAST_BF16",
)


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


def refuse_environment(precision: str | None, accumulation: int) -> None:
    """Refuses variables that would make accelerate compute something else than the config says.

    Args:
        precision: training.precision; None where the precision is not the config's to choose.
        accumulation: micro-batches of a step.

    Raises:
        UserError: there is such a variable.
    """
    _refuse("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", (*_NONE, "1", "auto", str(accumulation)),
            "set training.gradient_accumulation_steps instead")  # fmt: skip
    _refuse("ACCELERATE_DYNAMO_BACKEND", _NONE, "set training.compile=true instead")
    if precision is not None:
        _refuse("ACCELERATE_MIXED_PRECISION", (*_NONE, MIXED_PRECISION[precision]),
                "set training.precision instead")  # fmt: skip
    for variable in _UNSUPPORTED:
        _refuse(variable, _NONE, "this is not supported")


def _refuse(variable: str, neutral: tuple[str, ...], advice: str) -> None:
    value = os.environ.get(variable, "")
    if value.lower() not in neutral:
        raise UserError(
            f"{variable}={value} in the environment (accelerate launch and accelerate config set it) asks for what the "
            f"config does not say: unset it; {advice}"
        )


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


class ExactSum:
    """The sum of a step's gradients over its micro-batches on all processes, in float64."""

    def __init__(self, parameters: Iterable[nn.Parameter], accelerator: Accelerator, micro_batches: int) -> None:
        """
        Args:
            parameters: of the model.
            accelerator: of the run; the model is not to be wrapped in DDP or FSDP.
            micro_batches: of a step, over all processes.
        """
        self.micro_batches = micro_batches
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._accelerator = accelerator
        self._totals: list[torch.Tensor] = []

    def number(self, micro: int) -> int:
        """Of this process's micro-batch among the step's."""
        return self._accelerator.process_index * (self.micro_batches // self._accelerator.num_processes) + micro

    def add(self) -> None:
        """Takes the gradients of one micro-batch, whose loss was divided by ``micro_batches``."""
        if not self._totals:
            self._totals = [torch.zeros_like(p, dtype=torch.float64) for p in self._parameters]
        for parameter, total in zip(self._parameters, self._totals, strict=True):
            if parameter.grad is not None:
                total += parameter.grad
                parameter.grad = None

    def finish(self) -> None:
        """Gives every parameter the gradient of the whole step."""
        for parameter, total in zip(self._parameters, self._totals, strict=True):
            if self._accelerator.num_processes > 1:
                torch.distributed.all_reduce(total)
            parameter.grad = total.to(parameter.dtype)
            total.zero_()
