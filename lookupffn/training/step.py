"""One optimizer step, and what stops it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel

from lookupffn.config.sections import TrainingSettings
from lookupffn.distributed.processes import ExactSum
from lookupffn.distributed.sharding import local
from lookupffn.objectives import Objective
from lookupffn.objectives.base import NonFiniteError, describe_non_finite, finite_weights

logger = logging.getLogger(__name__)


def micro_batches_each(settings: TrainingSettings, processes: int) -> int:
    """Micro-batches of a step on each process."""
    if settings.micro_batches is None:
        return settings.gradient_accumulation_steps
    return settings.micro_batches // processes


def plain_attention(precision: str, device: str) -> bool:
    """Whether training on a type of device is faster with transformers' eager attention than with torch's fused one."""
    # the fused one takes 1.2 times a training step's time there, at lengths of 64 and 128
    return device == "cpu" and precision == "bf16"


@dataclass(frozen=True)
class StepResult:
    """One step, the same on every process.

    Attributes:
        loss: mean over all sequences of the step; NaN or infinite in one that was skipped for its loss.
        grad_norm: before clipping.
        skipped: whether the weights were left as they were.
        stop: whether a process was asked to stop.
        auxiliary: auxiliary losses of this process's last micro-batch as "auxiliary_<name>".
    """

    loss: float
    grad_norm: float
    skipped: bool
    stop: bool
    auxiliary: dict[str, float]


class Updater:
    """Does a run's optimizer steps.

    Attributes:
        model: the model itself.
        optimizer: accelerate's.
    """

    def __init__(
        self,
        objective: Objective,
        accelerator: Accelerator,
        *,
        model: PreTrainedModel,
        step_model: nn.Module,
        optimizer: Any,
        max_grad_norm: float | None,
        exact: ExactSum | None = None,
    ) -> None:
        """
        Args:
            objective: gives the loss; its config's seed decides dropout.
            accelerator: of the run.
            model: the model itself.
            step_model: the model as it is called (DDP, compiled).
            optimizer: accelerate's.
            max_grad_norm: clip to this norm; None not to clip.
            exact: adds the gradients up, in place of autograd and DDP; None for them.
        """
        self.model, self.optimizer = model, optimizer
        self._objective, self._accelerator, self._step_model = objective, accelerator, step_model
        self._seed, self._exact = objective.config.run.seed, exact
        self._max_grad_norm = math.inf if max_grad_norm is None else max_grad_norm

    def update(
        self, micro_batches: list[Any], *, step: int, may_skip: bool, stopping: Callable[[], object]
    ) -> StepResult:
        """One optimizer step over this process's micro-batches.

        Args:
            micro_batches: as many as accumulation steps.
            step: updates done before.
            may_skip: leave a batch out whose loss or gradient is NaN or infinite.
            stopping: whether this process has been asked to stop.

        Raises:
            NonFiniteError: NaN or infinity in the loss or gradient, unless ``may_skip`` and the weights are finite;
                they have not been touched.
        """
        loss, auxiliary = self._backward(micro_batches, step)
        norm = self._accelerator.clip_grad_norm_(self.model.parameters(), self._max_grad_norm)
        loss, grad_norm, stop = self._agree(loss, norm, bool(stopping()))
        skipped = not (math.isfinite(loss) and math.isfinite(grad_norm))
        scaler = self._accelerator.scaler
        # with fp16 an infinite gradient is the scaler's business: it skips the step and lowers the scale
        if skipped and not (scaler is not None and math.isfinite(loss)):
            reason = f"step {step + 1}: loss {loss}, gradient norm {grad_norm}; {describe_non_finite(self.model)}"
            if not may_skip or not finite_weights(self.model, self._accelerator):
                raise NonFiniteError(reason)
            logger.warning("%s; this batch is left out", reason)
            if scaler is not None:
                scaler.update()
        else:
            self.optimizer.step()
        self.optimizer.zero_grad()
        figures = {f"auxiliary_{name}": float(value.detach()) for name, value in auxiliary.items()}
        return StepResult(loss, grad_norm, skipped, stop, figures)

    def _backward(self, micro_batches: list[Any], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Leaves the step's gradient in the parameters; this process's mean loss, and the last auxiliary losses."""
        accelerator, exact = self._accelerator, self._exact
        losses, auxiliary = [], {}
        for micro, batch in enumerate(micro_batches):
            if exact is None:
                seed_dropout(self._seed, step, accelerator.process_index, micro)
            else:
                seed_dropout(self._seed, step, 0, exact.number(micro))
            with accelerator.accumulate(self._step_model) if exact is None else nullcontext():
                loss = self._objective.loss(self._step_model, batch, accelerator.device)
                auxiliary = self.model.auxiliary_losses()
                total = sum(auxiliary.values(), loss)
                accelerator.backward(total if exact is None else total / exact.micro_batches)
                losses.append(loss.detach().float())
                if exact is not None:
                    exact.add()
        if exact is not None:
            exact.finish()
        return torch.stack(losses).mean(), auxiliary

    def _agree(self, loss: Tensor, norm: Tensor, stopping: bool) -> tuple[float, float, bool]:
        """Loss, gradient norm and whether any process stops, the same on every process."""
        accelerator, device = self._accelerator, self._accelerator.device
        # what all processes must agree on goes in one reduction: a signal need not reach them in the same step
        shared = torch.stack([loss, torch.tensor(float(stopping), device=device)])
        if accelerator.num_processes > 1:
            shared = accelerator.reduce(shared, reduction="mean")
        # one synchronisation a step, so that a bad gradient is seen before it reaches the weights
        mean, stop, grad_norm = torch.cat([shared, local(norm).float().to(device).view(1)]).tolist()
        return mean, grad_norm, stop > 0


def seed_dropout(seed: int, step: int, rank: int, micro: int) -> None:
    """Torch's generators for one micro-batch."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank, micro]).generate_state(1, np.uint64)[0] >> 1))
