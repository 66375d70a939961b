"""One run, from its config to its folder, and one line for whatever ends it early."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from omegaconf import DictConfig

from lookupffn.config.sections import training_settings
from lookupffn.distributed.processes import broadcast, on_main, start_accelerator
from lookupffn.errors import UserError
from lookupffn.objectives import Objective
from lookupffn.objectives.finite import NonFiniteError
from lookupffn.runs.checkpoint import what_is_kept
from lookupffn.runs.folder import member_folder, open_run_folder
from lookupffn.runs.names import CHECKPOINTS, group_name
from lookupffn.runs.reading import read_summary
from lookupffn.signals import Interrupted, handling, name, received
from lookupffn.training.checks import check_config
from lookupffn.training.failures import advice, failure
from lookupffn.training.setup import resolve
from lookupffn.training.tracking import start_tracker
from lookupffn.training.trainer import Trainer

logger = logging.getLogger(__name__)


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
