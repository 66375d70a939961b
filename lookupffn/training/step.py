"""One optimizer step, and what stops it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from lookupffn.data import MaskedBatch
from lookupffn.errors import UserError
from lookupffn.model import LookupRobertaForMaskedLM


class NonFiniteError(UserError):
    """The loss, a gradient or a weight became NaN or infinite."""


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
) -> tuple[float, float, dict[str, float]]:
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

    Returns:
        Mean loss of this process's sequences, the gradient's norm before clipping, auxiliary losses of the last
        micro-batch as "auxiliary_<name>".

    Raises:
        NonFiniteError: NaN or infinity in the loss or gradient; the weights have not been touched.
    """
    device = accelerator.device
    losses, auxiliary = [], {}
    for micro, batch in enumerate(micro_batches):
        seed_dropout(seed, step, accelerator.process_index, micro)
        with accelerator.accumulate(step_model):
            output = step_model(
                input_ids=batch.input_ids.to(device, non_blocking=True),
                masked_positions=batch.positions.to(device, non_blocking=True),
                labels=batch.labels.to(device, non_blocking=True),
            )
            auxiliary = model.auxiliary_losses()
            accelerator.backward(sum(auxiliary.values(), output.loss))
            losses.append(output.loss.detach().float())
    norm = accelerator.clip_grad_norm_(model.parameters(), math.inf if max_grad_norm is None else max_grad_norm)
    # one synchronisation a step, so that a bad gradient is seen before it reaches the weights
    loss, grad_norm = torch.stack([torch.stack(losses).mean(), norm.float().to(device)]).tolist()
    # with fp16 an infinite gradient is the scaler's business: it skips the step and lowers the scale
    if not math.isfinite(loss) or (not math.isfinite(grad_norm) and accelerator.scaler is None):
        raise NonFiniteError(f"step {step + 1}: loss {loss}, gradient norm {grad_norm}; {describe_non_finite(model)}")
    optimizer.step()
    optimizer.zero_grad()
    return loss, grad_norm, {f"auxiliary_{name}": float(value.detach()) for name, value in auxiliary.items()}


def check_weights(model: nn.Module, step: int) -> None:
    """Raises a NonFiniteError where a weight is NaN or infinite: nothing to keep as a checkpoint."""
    # one synchronisation for all of them
    if not torch.stack([torch.isfinite(p.detach()).all() for p in model.parameters()]).all():
        raise NonFiniteError(f"step {step}: {describe_non_finite(model)}")


def check_validation(loss: float, where: str, model: nn.Module) -> None:
    """Raises a NonFiniteError where a validation loss is NaN or infinite."""
    if not math.isfinite(loss):
        raise NonFiniteError(f"{where}: validation loss {loss}; {describe_non_finite(model)}")


def describe_non_finite(model: nn.Module) -> str:
    """Which parameters, in one line."""
    weights = [n for n, p in model.named_parameters() if not torch.isfinite(p).all()]
    gradients = [n for n, p in model.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]
    kind, names = ("weights", weights) if weights else ("gradients", gradients)
    if not names:
        return "weights and gradients are finite"
    return f"non-finite {kind} in {len(names)} parameters: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"


def advice(kept: str) -> str:
    """What to do after a NonFiniteError; ``kept`` says which checkpoint there is."""
    start = " (init_from=<run folder> starts from its weights)" if kept.startswith("The") else ""
    return f". The run stops. {kept}{start}; try a lower optimizer.lr, a longer warm-up or training.precision=fp32"


def seed_dropout(seed: int, step: int, rank: int, micro: int) -> None:
    """Torch's generators for one micro-batch."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank, micro]).generate_state(1, np.uint64)[0] >> 1))
