"""What to say when a run fails: no memory left, another process gone, numbers that became NaN."""

from __future__ import annotations

import re

import torch

from lookupffn.errors import UserError

_NO_MEMORY = re.compile(r"DefaultCPUAllocator|bad_alloc|out of memory|can't allocate memory|[Cc]annot allocate memory")
_NO_PARTNER = re.compile(
    r"[Cc]onnection (was )?(closed|reset|lost)|Broken pipe|Socket (closed|Timeout)|gloo|NCCL|TCPStore|"
    r"Read timeout|Timed out waiting"
)
_KNOBS = (
    "training.batch_size, training.gradient_accumulation_steps (more of them: smaller micro-batches, the same result), "
    "training.precision=bf16, model.sequence_length, evaluation.batch_size"
)


def failure(error: Exception, processes: int) -> UserError | None:
    """The error to show for one whose cause lies outside the program; None for any other.

    Args:
        error: what was raised.
        processes: how many the run has.
    """
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and _NO_MEMORY.search(text)
    ):
        return UserError(f"out of memory ({text[:160] or type(error).__name__}): lower one of {_KNOBS}")
    lost = isinstance(error, torch.distributed.DistError | RuntimeError) and _NO_PARTNER.search(text)
    if processes > 1 and lost:
        return UserError(
            f"another process of this run is gone ({text[:160]}): its own message, or the launcher's, says why"
        )
    return None


def advice(kept: str) -> str:
    """What to do after a NonFiniteError; ``kept`` says which checkpoint there is."""
    start = " (init_from=<run folder> starts from its weights)" if kept.startswith("The") else ""
    return (
        f". The run stops. {kept}{start}; try a lower optimizer.lr, a longer warm-up or training.precision=fp32, or "
        "leave such batches out with training.skip_nonfinite=10"
    )
