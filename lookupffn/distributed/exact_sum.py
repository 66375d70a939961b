"""Gradients that do not depend on the number of processes.

A sum of float32 numbers depends on their order, and the last bit of a gradient decides, some steps later, on which side
of a hyperplane a token falls and which table rows it reads: losses of lookup runs on one process and on two differ by
1e-4 within tens of steps. With ``training.micro_batches`` a step has the same parts on any number of processes, and
the parts are added in float64, where their order shows in no bit that float32 keeps (but for a rare tie in rounding).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from accelerate import Accelerator
from torch import nn


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
