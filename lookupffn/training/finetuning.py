"""finetune.py's one function: a task, or all nine of GLUE and their average."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from lookupffn.data.labelled import GLUE
from lookupffn.objectives import SequenceClassification
from lookupffn.objectives.metrics import METRICS, glue_score, task_score
from lookupffn.report.summary_table import render
from lookupffn.training.run import train

ALL = "glue"
# the folders that GLUE's own script makes
FOLDERS = {
    "cola": "CoLA", "sst2": "SST-2", "mrpc": "MRPC", "stsb": "STS-B", "qqp": "QQP", "mnli": "MNLI", "qnli": "QNLI",
    "rte": "RTE", "wnli": "WNLI",
}  # fmt: skip

logger = logging.getLogger(__name__)


def finetune(cfg: DictConfig, *, sweep_member: bool = False, differing: Sequence[str] = ()) -> float | None:
    """Fine-tunes on one task, or on each of GLUE.

    Args:
        cfg: the composed config (configs/finetune.yaml).
        sweep_member: whether this is one run of several.
        differing: the settings in which these differ.

    Returns:
        The task's score as GLUE forms it, the mean of its metrics, or GLUE's average; None on all processes but the
        main one.

    Raises:
        UserError: see ``lookupffn.training.train``.
    """
    if OmegaConf.select(cfg, "task.name") != ALL:
        summary = train(cfg, SequenceClassification, sweep_member=sweep_member, differing=differing)
        return None if summary is None else task_score(scores(summary))
    found: dict[str, dict[str, float]] = {}
    for task in GLUE:
        logger.info("task %s, %d of %d", task, len(found) + 1, len(GLUE))
        # each run has a folder of its own in output_dir, and is skipped if it is finished, as in a sweep
        summary = train(
            task_config(cfg, task), SequenceClassification, sweep_member=True, differing=["task.name", *differing]
        )
        found[task] = {} if summary is None else scores(summary)
    if not all(found.values()):
        return None
    average = glue_score(found)
    rows = [(task, ", ".join(f"{name} {value:.4f}" for name, value in found[task].items())) for task in found]
    sys.stdout.write(render([*rows, ("GLUE", f"{average:.2f}, the mean over tasks of the mean of their metrics")]))
    return average


def task_config(cfg: DictConfig, task: str) -> DictConfig:
    """The config of one of GLUE's tasks, whose files are in a folder of the task's in ``task.data``."""
    one = cfg.copy()
    with open_dict(one):
        one.task.name = task
        if one.task.data:
            folder = Path(str(one.task.data)).expanduser()
            names = (FOLDERS[task], FOLDERS[task].lower(), task)
            one.task.data = str(next((folder / name for name in names if (folder / name).is_dir()), folder / names[0]))
    return one


def scores(summary: dict[str, Any]) -> dict[str, float]:
    """The metrics of a summary, by name without "validation_"; one that is undefined counts zero, as in GLUE."""
    prefix = "validation_"
    return {
        key.removeprefix(prefix): summary[key] or 0.0
        for key in summary
        if key.startswith(prefix) and key.endswith(METRICS)
    }
