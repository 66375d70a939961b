"""metrics.jsonl: a line per logged step, each step once, whatever interrupted the run; and the bar that shows it."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lookupffn.config.sections import Budget
from lookupffn.errors import UserError
from lookupffn.storage import to_json, write_atomically

logger = logging.getLogger(__name__)


def append_line(path: Path, line: dict[str, Any], *, kept: str) -> None:
    """One line of metrics.jsonl, on the disk when this returns as far as the process is concerned.

    Args:
        path: the file.
        line: JSON values; NaN and infinity become null.
        kept: what the user still has, for the message.

    Raises:
        UserError: the disk is full or cannot be written; the line may be cut short, which ``read_metrics`` passes over.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(to_json(line))
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}. {kept}: free some space and repeat the command"
        ) from error


def sync(path: Path) -> None:
    """Puts the lines on the disk as far as the machine is concerned: before a checkpoint that builds on them."""
    if path.exists():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def read_metrics(path: Path, up_to_step: int | None = None) -> list[dict[str, Any]]:
    """The whole lines of a metrics.jsonl, at most up to a step; a line cut short by a kill ends it."""
    lines: list[dict[str, Any]] = []
    if not path.exists():
        return lines
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
            step = line["step"]
            beyond = up_to_step is not None and step > up_to_step
        except (ValueError, KeyError, TypeError, RecursionError):
            break
        if beyond:
            break
        lines.append(line)
    return lines


def truncate_metrics(path: Path, step: int) -> list[dict[str, Any]]:
    """Drops what was logged after the checkpoint that training goes on from, so that each step stands once.

    Raises:
        UserError: the disk is full or cannot be written; the file is as it was.
    """
    try:
        lines = read_metrics(path, up_to_step=step)
        if path.exists():
            write_atomically(path, "".join(map(to_json, lines)))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; it is as it was") from error
    return lines


def show(bar: tqdm, line: dict[str, Any], budget: Budget, progress: float) -> None:
    """The progress bar's figures, and a log line at validation points.

    Args:
        bar: the progress bar.
        line: of metrics.jsonl.
        budget: of the run.
        progress: used-up part of a budget of minutes, 0 to 1.
    """
    shown = {
        "loss": f"{line['loss']:.3f}",
        "lr": f"{line['learning_rate']:.1e}",
        "tok/s": f"{line['tokens_per_s']:,.0f}",
    }
    if budget.unit == "minutes":
        shown["min"] = f"{progress * budget.amount:.1f}/{budget.amount:g}"
    bar.set_postfix(shown, refresh=False)
    if "validation_loss" in line:
        logger.info(
            "step %d: validation perplexity %.2f (loss %.4f)",
            line["step"], line["validation_perplexity"], line["validation_loss"],
        )  # fmt: skip
