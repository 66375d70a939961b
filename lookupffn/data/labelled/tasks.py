"""From a task's settings to examples with numbered labels."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lookupffn import storage
from lookupffn.config.data import CLASSES, NUMBER, OWN_TASK, OwnTaskSettings, TaskSettings
from lookupffn.data.labelled.files import Row, read_own
from lookupffn.data.labelled.glue import GLUE, check_counts, read_hub, read_official
from lookupffn.errors import UserError

logger = logging.getLogger(__name__)

OWN_METRICS = {CLASSES: ("accuracy", "f1"), NUMBER: ("pearson", "spearman")}


@dataclass(frozen=True)
class Examples:
    """One split.

    Attributes:
        texts: one or two strings each.
        labels: int64 class numbers or float32 scores, [N].
    """

    texts: list[tuple[str, ...]]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class LabelledData:
    """A task's examples.

    Attributes:
        name: of the task.
        splits: "train" and one or more validation splits.
        label_names: of the classes; None for a score.
        metrics: to report, the first is the one that a table shows.
        official: whether these are GLUE's own splits, by their numbers of rows.
        fingerprint: 32 hex digits of texts and labels.
    """

    name: str
    splits: dict[str, Examples]
    label_names: tuple[str, ...] | None
    metrics: tuple[str, ...]
    official: bool
    fingerprint: str

    @property
    def validation_names(self) -> list[str]:
        """Every split but the training split."""
        return [name for name in self.splits if name != "train"]


def load_task(settings: TaskSettings) -> LabelledData:
    """Reads the examples of a task.

    Args:
        settings: the task section.

    Raises:
        UserError: a missing file or column, an empty sentence, a label outside the set.
    """
    name = settings.name
    if name in GLUE:
        task, official = GLUE[name], True
        if settings.data:
            folder = Path(settings.data).expanduser()
            rows = read_official(name, folder)
            official = check_counts(name, rows, folder)
        else:
            rows = read_hub(name)
        names: Sequence[str] | None = task.label_names
        metrics, blank = task.metrics, len(task.columns) > 1
    else:
        assert isinstance(settings, OwnTaskSettings)
        rows, official, blank = _own_rows(settings), False, False
        kind = _label_kind(rows["train"], settings.label_type)
        names = _class_names(rows["train"]) if kind == CLASSES else None
        metrics = OWN_METRICS[kind]
    if settings.tuning_fraction:
        rows, official = _held_out(rows["train"], settings.tuning_fraction), False
    splits = {split: _examples(found, split, names, blank) for split, found in rows.items()}
    digest = storage.fingerprint(
        splits={split: [found.texts, found.labels.tolist()] for split, found in splits.items()}, names=names
    )
    return LabelledData(name, splits, None if names is None else tuple(names), metrics, official, digest)


def _own_rows(settings: OwnTaskSettings) -> dict[str, list[Row]]:
    rows: dict[str, list[Row]] = {}
    for split in ("train", "validation"):
        files = getattr(settings, f"{split}_files")
        if not files:
            raise UserError(
                f"task={OWN_TASK} has no {split} split: give task.{split}_files=<a .tsv, .csv, .jsonl or .parquet>"
            )
        rows[split] = []
        for file in [files] if isinstance(files, str) else files:
            path = Path(str(file)).expanduser()
            rows[split] += read_own(path, settings.text_columns, settings.label_column)
    return rows


def _held_out(rows: list[Row], fraction: float) -> dict[str, list[Row]]:
    """The training rows in two, by a hash of the text: equal sentences stay together, whatever the order."""
    splits: dict[str, list[Row]] = {"train": [], "validation": []}
    for row in rows:
        place = int(storage.fingerprint(texts=row.texts)[:8], 16) / 2**32
        splits["validation" if place < fraction else "train"].append(row)
    return splits


def _label_kind(rows: list[Row], wanted: str | None) -> str:
    """Whether labels are classes or numbers: as told, else numbers if one of them has a fraction."""
    if wanted is not None:
        return wanted
    values = [_number(row.label) for row in rows]
    if all(value is not None for value in values) and any(value != int(value) for value in values if value is not None):
        return NUMBER
    return CLASSES


def _number(value: object) -> float | None:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _class_names(rows: list[Row]) -> list[str]:
    """Every label of the training rows, whole numbers in the order of their size, then the rest by name."""
    names = {str(row.label) for row in rows}
    return sorted(names, key=lambda name: (0, int(name), "") if name.removeprefix("-").isdigit() else (1, 0, name))


def _examples(rows: list[Row], split: str, names: Sequence[str] | None, blank: bool) -> Examples:
    """Rows with their labels numbered.

    Args:
        rows: of the split.
        split: its name.
        names: of the classes; None for numbers.
        blank: whether a sentence may be empty: official pairs have a few such.
    """
    if not rows:
        raise UserError(f"the {split} split is empty")
    empty = [row.where for row in rows if not all(text.strip() for text in row.texts)]
    if empty and not blank:
        raise UserError(f"{empty[0]}: the sentence is empty: correct or remove the row ({len(empty)} such in all)")
    if empty:
        logger.info("%s: %d rows have an empty sentence, the first at %s", split, len(empty), empty[0])
    texts = [row.texts for row in rows]
    if names is None:
        numbers = [_number(row.label) for row in rows]
        for row, number in zip(rows, numbers, strict=True):
            if number is None:
                raise UserError(f"{row.where}: the label {row.label!r} is not a number")
        return Examples(texts, np.array(numbers, dtype=np.float32))
    known = {name: number for number, name in enumerate(names)} | {str(n): n for n in range(len(names))}
    labels = []
    for row in rows:
        if str(row.label) not in known:
            raise UserError(f"{row.where}: the label {row.label!r} is not one of {', '.join(names)[:200]}")
        labels.append(known[str(row.label)])
    return Examples(texts, np.array(labels, dtype=np.int64))
