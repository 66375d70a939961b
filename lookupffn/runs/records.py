"""The files of a run folder, read and written: config.yaml, metrics.jsonl, summary.json, token_counts.json.

Reading trusts no file: an ordinary file of a sane size, read as plain data, or one line that names it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import yaml

from lookupffn.errors import UserError
from lookupffn.runs.names import CHECKPOINTS, CONFIG, INNER_FOLDERS, LOCK, METRICS, SUMMARY, TOKEN_COUNTS
from lookupffn.storage import read_json, read_text, to_json, write_atomically

MAX_CONFIG_BYTES = 2**20
MAX_METRICS_BYTES = 2**30


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases, which can make a small file a huge value, and without dates, which no setting is."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.constructor.ConstructorError(problem="aliases are not read")
        return super().compose_node(parent, index)


_PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def run_folders(paths: Iterable[Path]) -> list[Path]:
    """Every run folder, begun or finished, in some folders at any depth, in the order of their paths.

    Raises:
        UserError: a folder does not exist or cannot be read.
    """
    found: dict[Path, Path] = {}
    for top in paths:
        if not top.is_dir():
            raise UserError(f"no folder {top}: give run folders, or folders that hold some")
        for name, inner, files in os.walk(top, onerror=_refuse):
            begun = CONFIG in files and (METRICS in files or LOCK in files or CHECKPOINTS in inner)
            if SUMMARY in files or begun:
                found.setdefault(Path(name).resolve(), Path(name))
            inner[:] = sorted(i for i in inner if i not in INNER_FOLDERS and not i.startswith("."))
    return sorted(found.values(), key=str)


def _refuse(error: OSError) -> NoReturn:
    raise UserError(f"cannot read {error.filename}: {error.strerror}")


def read_config(folder: Path) -> dict[str, Any]:
    """A run's config.yaml.

    Raises:
        UserError: it is missing or damaged.
    """
    path = folder / CONFIG
    text = read_text(path, MAX_CONFIG_BYTES)
    try:
        config = yaml.load(text, _PlainLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())[:300]}") from None
    if not isinstance(config, dict) or not all(isinstance(key, str) for key in config):
        raise UserError(f"{path} is not the config of a run")
    return config


def read_summary(folder: Path) -> dict[str, Any]:
    """A finished run's summary.json.

    Raises:
        UserError: it is missing or damaged.
    """
    return read_json(folder / SUMMARY)


def read_metrics(folder: Path, up_to_step: int | None = None, *, strict: bool = False) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; none where there is no such file.

    Args:
        folder: of the run.
        up_to_step: leave out later ones.
        strict: refuse a damaged line; else it ends what is read, for a kill may have cut it short.

    Raises:
        UserError: the file cannot be read or, if ``strict``, is missing or damaged.
    """
    path = folder / METRICS
    lines: list[dict[str, Any]] = []
    if not path.exists() and not strict:
        return lines
    for number, text in enumerate(read_text(path, MAX_METRICS_BYTES, damaged=not strict).splitlines(), start=1):
        try:
            line = json.loads(text)
            beyond = up_to_step is not None and line["step"] > up_to_step
            if isinstance(line["step"], bool) or not isinstance(line["step"], int):
                raise ValueError("step")
        except (ValueError, KeyError, TypeError, RecursionError):
            if strict:
                raise UserError(f"damaged file {path}: line {number} is not a line of metrics") from None
            break
        if beyond:
            break
        lines.append(line)
    return lines


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("training.max_steps", 1500), ... for every value of a nested config."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


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


def write_token_counts(folder: Path, counts: Sequence[int]) -> None:
    """Writes the counts, by token id, into a run's folder.

    Raises:
        UserError: the disk is full or cannot be written.
    """
    try:
        write_atomically(folder / TOKEN_COUNTS, to_json({"counts": list(counts)}))
    except OSError as error:
        raise UserError(f"cannot write {folder / TOKEN_COUNTS}: {error.strerror or error}") from error


def read_token_counts(folder: Path, vocab_size: int) -> np.ndarray | None:
    """int64 [V]; None where a run has none, as earlier versions left it.

    Raises:
        UserError: the file is damaged, or is for a vocabulary of another size.
    """
    path = folder / TOKEN_COUNTS
    if not path.exists():
        return None
    counts = read_json(path).get("counts")
    whole = isinstance(counts, list) and all(type(count) is int and 0 <= count < 2**62 for count in counts)
    if not whole or len(counts) != vocab_size:
        raise UserError(f"damaged file {path}: it does not hold the counts of {vocab_size} tokens")
    return np.array(counts, dtype=np.int64)
