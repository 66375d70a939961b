"""Writing metrics.jsonl: one line per logged step, each step once, whatever interrupted the run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lookupffn.errors import UserError
from lookupffn.runs.reading import read_metrics
from lookupffn.storage import to_json, write_atomically


def append_line(path: Path, line: dict[str, Any], *, kept: str) -> None:
    """Appends one line to metrics.jsonl; it survives the end of the process, and a power failure after ``sync``.

    Args:
        path: the file.
        line: JSON values; NaN and infinity become null.
        kept: what the user still has, for the message.

    Raises:
        UserError: the disk is full or cannot be written; the line may be cut short, which ``read_metrics`` ignores.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(to_json(line))
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}. {kept}: free some space and repeat the command"
        ) from error


def sync(path: Path) -> None:
    """Flushes the lines to the disk (fsync): a checkpoint must not survive a power failure that its metrics do not."""
    if path.exists():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def truncate_metrics(path: Path, step: int) -> list[dict[str, Any]]:
    """Drops what was logged after the checkpoint that training resumes from, so that each step stands once.

    Raises:
        UserError: the disk is full or cannot be written; the file is as it was.
    """
    try:
        lines = read_metrics(path.parent, up_to_step=step)
        if path.exists():
            write_atomically(path, "".join(map(to_json, lines)))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; it is as it was") from error
    return lines
