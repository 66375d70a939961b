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
from torch import nn

from lookupffn.data import MaskedBatch
from lookupffn.distributed.exact_sum import ExactSum
from lookupffn.distributed.processes import any_process
from lookupffn.distributed.sharding import local
from lookupffn.errors import UserError
from lookupffn.models import LookupRobertaForMaskedLM

logger = logging.getLogger(__name__)


class NonFiniteError(UserError):
    """The loss, a gradient or a weight became NaN or infinite."""


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


def update(
    step_model: nn.Module,
    model: LookupRobertaForMaskedLM,
    optimizer: Any,
    accelerator: Accelerator,
    micro_batches: list[MaskedBatch],
    *,
    seed: int,
    step: int,
    max_grad_norm: float | None,
    may_skip: bool,
    stopping: Callable[[], object],
    exact: ExactSum | None = None,
) -> StepResult:
    """One optimizer step over this process's micro-batches.

    Args:
        step_model: the model as it is called (DDP, compiled).
        model: the model itself.
        optimizer: accelerate's.
        accelerator: of the run.
        micro_batches: as many as accumulation steps.
        seed: of the run.
        step: updates done before.
        max_grad_norm: clip to this norm; None not to clip.
        may_skip: leave a batch out whose loss or gradient is NaN or infinite.
        stopping: whether this process has been asked to stop.
        exact: adds the gradients up, in place of autograd and DDP; None for them.

    Raises:
        NonFiniteError: NaN or infinity in the loss or gradient, unless ``may_skip`` and the weights are finite; they
            have not been touched.
    """
    device = accelerator.device
    losses, auxiliary = [], {}
    for micro, batch in enumerate(micro_batches):
        if exact is None:
            seed_dropout(seed, step, accelerator.process_index, micro)
        else:
            seed_dropout(seed, step, 0, exact.number(micro))
        with accelerator.accumulate(step_model) if exact is None else nullcontext():
            output = step_model(
                input_ids=batch.input_ids.to(device, non_blocking=True),
                masked_positions=batch.positions.to(device, non_blocking=True),
                labels=batch.labels.to(device, non_blocking=True),
            )
            auxiliary = model.auxiliary_losses()
            loss = sum(auxiliary.values(), output.loss)
            accelerator.backward(loss if exact is None else loss / exact.micro_batches)
            losses.append(output.loss.detach().float())
            if exact is not None:
                exact.add()
    if exact is not None:
        exact.finish()
    norm = accelerator.clip_grad_norm_(model.parameters(), math.inf if max_grad_norm is None else max_grad_norm)
    # what all processes must agree on goes in one reduction: a signal need not reach them in the same step
    shared = torch.stack([torch.stack(losses).mean(), torch.tensor(float(bool(stopping())), device=device)])
    if accelerator.num_processes > 1:
        shared = accelerator.reduce(shared, reduction="mean")
    # one synchronisation a step, so that a bad gradient is seen before it reaches the weights
    loss, stop, grad_norm = torch.cat([shared, local(norm).float().to(device).view(1)]).tolist()
    skipped = not (math.isfinite(loss) and math.isfinite(grad_norm))
    # with fp16 an infinite gradient is the scaler's business: it skips the step and lowers the scale
    if skipped and not (accelerator.scaler is not None and math.isfinite(loss)):
        reason = f"step {step + 1}: loss {loss}, gradient norm {grad_norm}; {describe_non_finite(model)}"
        if not may_skip or not finite_weights(model, accelerator):
            raise NonFiniteError(reason)
        logger.warning("%s; this batch is left out", reason)
        if accelerator.scaler is not None:
            accelerator.scaler.update()
    else:
        optimizer.step()
    optimizer.zero_grad()
    figures = {f"auxiliary_{name}": float(value.detach()) for name, value in auxiliary.items()}
    return StepResult(loss, grad_norm, skipped, stop > 0, figures)


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


def advice(kept: str) -> str:
    """What to do after a NonFiniteError; ``kept`` says which checkpoint there is."""
    start = " (init_from=<run folder> starts from its weights)" if kept.startswith("The") else ""
    return (
        f". The run stops. {kept}{start}; try a lower optimizer.lr, a longer warm-up or training.precision=fp32, or "
        "leave such batches out with training.skip_nonfinite=10"
    )


def seed_dropout(seed: int, step: int, rank: int, micro: int) -> None:
    """Torch's generators for one micro-batch."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank, micro]).generate_state(1, np.uint64)[0] >> 1))
