"""One run: its config, its training, and one line for whatever ends it early."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig

from lookupffn.config.run import read_run, resolve
from lookupffn.distributed.processes import broadcast, on_main, start_accelerator
from lookupffn.errors import UserError
from lookupffn.objectives import Objective
from lookupffn.objectives.base import NonFiniteError
from lookupffn.runs.checkpoint import what_is_kept
from lookupffn.runs.folder import member_folder, open_run_folder
from lookupffn.runs.names import CHECKPOINTS, group_name
from lookupffn.runs.records import read_summary
from lookupffn.signals import Interrupted, handling, name, received
from lookupffn.training.tracking import check_tracker, start_tracker
from lookupffn.training.trainer import Trainer

logger = logging.getLogger(__name__)

_NO_MEMORY = re.compile(r"DefaultCPUAllocator|bad_alloc|out of memory|can't allocate memory|[Cc]annot allocate memory")
_NO_PARTNER = re.compile(
    r"[Cc]onnection (was )?(closed|reset|lost)|Broken pipe|Socket (closed|Timeout)|gloo|NCCL|TCPStore|"
    r"Read timeout|Timed out waiting"
)
_KNOBS = (
    "training.batch_size, training.gradient_accumulation_steps (more of them: smaller micro-batches, the same result), "
    "training.precision=bf16, model.sequence_length, evaluation.batch_size"
)


def train(
    cfg: DictConfig, objective_class: type[Objective], *, sweep_member: bool = False, differing: Sequence[str] = ()
) -> dict[str, Any] | None:
    """Trains one model and leaves its run folder.

    Args:
        cfg: the composed config.
        objective_class: what to train for.
        sweep_member: whether this is one run of several.
        differing: the settings in which these differ, as "ffn.num_tables", "seed": its folder is named by them.

    Returns:
        The contents of summary.json, also of a sweep member that was finished already; None on every process but the
        main one.

    Raises:
        UserError: something the user gave cannot be, or training diverged, or memory or disk are full.
        Interrupted: SIGINT or SIGTERM; the run resumes when it is started again.
    """
    started = time.perf_counter()
    values = resolve(cfg, objective_class.sections)
    objective = build_objective(values, objective_class)
    settings, tracking = objective.config.training, objective.config.tracker
    accelerator = start_accelerator(settings.precision, settings.gradient_accumulation_steps)
    settings.check_processes(accelerator.num_processes)

    group = group_name(values, differing)
    folder = on_main(accelerator, lambda: open_run_folder(values, sweep_member=sweep_member, differing=differing))
    path = broadcast(accelerator, None if folder is None else folder.path)
    if path is None:
        return on_main(accelerator, lambda: read_summary(member_folder(values, differing)))
    logger.info("run folder: %s", path)
    try:
        with handling():
            tracker = partial(start_tracker, path, tracking, values, group, sweep_member=sweep_member)
            trainer = Trainer(path, objective, accelerator, tracker, started)
            if folder is not None and not folder.fresh:
                folder.write_config(values)
            return trainer.run()
    except NonFiniteError as error:
        raise NonFiniteError(f"{error}{advice(what_is_kept(path / CHECKPOINTS))}") from None
    except Interrupted as stop:
        kept = what_is_kept(path / CHECKPOINTS)
        raise Interrupted(stop.signum, f"stopped by {name(stop.signum)}. {kept}: repeat the command to go on") from None
    except (RuntimeError, MemoryError) as error:
        reason = failure(error, accelerator.num_processes)
        if reason is None:
            raise
        if (signum := received()) is not None:  # the others have stopped already
            raise Interrupted(signum) from None
        raise UserError(f"{reason}. {what_is_kept(path / CHECKPOINTS)}") from error
    finally:
        if folder is not None:
            folder.release()


def build_objective(values: dict[str, Any], objective_class: type[Objective]) -> Objective:
    """The objective of a run, its config read and checked, before any of its data is read.

    Args:
        values: of the config, resolved; a model that `init_from` names decides some of them.
        objective_class: what to train for.

    Raises:
        UserError: a value that cannot be.
    """
    source = objective_class.adopt(values)
    config = read_run(values)
    objective = objective_class(config, source)
    check_tracker(config.tracker)
    if config.training.precision == "fp16" and not torch.cuda.is_available():
        raise UserError("training.precision=fp16 needs a GPU; on this machine use fp32 or bf16")
    return objective


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
