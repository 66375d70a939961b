"""One run: its config resolved and checked, its training, and one line for whatever ends it early."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from lookupffn.config.data import absolute, absolute_paths, path_text
from lookupffn.config.race import without_race
from lookupffn.config.schema import read
from lookupffn.config.sections import TrainingSettings, optimizer_settings, training_settings
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

_SECTIONS = ("optimizer", "training", "tracker")
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
    config = resolve(cfg, objective_class)
    objective = objective_class(config)
    settings = check_config(config, objective_class)
    accelerator = start_accelerator(settings.precision, settings.gradient_accumulation_steps)
    training_settings(config["training"], accelerator.num_processes)

    folder = on_main(accelerator, lambda: open_run_folder(config, sweep_member=sweep_member, differing=differing))
    path = broadcast(accelerator, None if folder is None else folder.path)
    if path is None:
        return on_main(accelerator, lambda: read_summary(member_folder(config, differing)))
    logger.info("run folder: %s", path)
    try:
        with handling():
            group = group_name(config, differing)
            tracker = partial(start_tracker, path, config, group, sweep_member=sweep_member)
            trainer = Trainer(path, objective, settings, accelerator, tracker, started)
            if folder is not None:
                folder.write_config(config)
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


def resolve(cfg: DictConfig, objective_class: type[Objective]) -> dict[str, Any]:
    """The config as plain values, with paths that hold from any folder.

    Raises:
        UserError: a section is missing, or a path is something else.
    """
    config = OmegaConf.to_container(without_race(cfg), resolve=True, throw_on_missing=True)
    if "checkpoint" in config:  # what fine-tuning calls it
        config["init_from"] = config.pop("checkpoint")
    for section in (*objective_class.sections, *_SECTIONS):
        if not isinstance(config.get(section), dict):
            raise UserError(f"the config has no {section}: choose one, as in {section}=<name>")
    for key in ("seed", "overwrite", *objective_class.paths):
        if key not in config:
            raise UserError(f"the config has no {key}, which the file of this command in configs/ gives")
    for key in objective_class.paths:
        config[key] = path_text(key, config[key])
    for section in ("data", "task"):
        absolute_paths(config.get(section, {}))
    tokenizer_path = config.get("tokenizer", {}).get("path")
    # a folder, or else a name on the hub
    if tokenizer_path and Path(str(tokenizer_path)).expanduser().is_dir():
        config["tokenizer"]["path"] = absolute(tokenizer_path)
    return config


def check_config(config: Mapping[str, Any], objective_class: type[Objective]) -> TrainingSettings:
    """Refuses what can be refused before the data is prepared.

    Args:
        config: the resolved config.
        objective_class: checks the sections that are its own.

    Raises:
        UserError: a value that cannot be.
    """
    outside = {key: value for key, value in config.items() if not isinstance(value, dict)}
    read(objective_class.run_settings, outside, "", "setting")
    settings = training_settings(config["training"], 1)
    optimizer_settings(config["optimizer"])
    check_tracker(config["tracker"])
    objective_class.check(config)
    if settings.precision == "fp16" and not torch.cuda.is_available():
        raise UserError("training.precision=fp16 needs a GPU; on this machine use fp32 or bf16")
    return settings


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
