"""The `data` and `task` sections: what all take, what each takes beside it, and paths that hold from any folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lookupffn.config.schema import option
from lookupffn.config.sections import SHORTEST_SEQUENCE, read_choice
from lookupffn.errors import UserError

CLASSES, NUMBER = "classes", "number"
GLUE_TASKS = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
OWN_TASK = "classification"
FREEZE = ("none", "tables", "ffn", "encoder")


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What every corpus takes."""

    name: str = option()
    sequence_length: int = option(128, at_least=SHORTEST_SEQUENCE)
    mask_rate: float = option(0.15, above=0, below=1)

    def check(self) -> None:
        """Compares the options with each other."""
        masked_count(self.mask_rate, self.sequence_length)


@dataclass(frozen=True, kw_only=True)
class PackageTextSettings(DataSettings):
    """`data=docstrings` and `data=comments`."""

    validation_fraction: float = option(0.05, at_least=0, below=1)
    roots: list[str] | str | None = None


@dataclass(frozen=True, kw_only=True)
class TextSettings(DataSettings):
    """`data=text`."""

    train_files: list[str] | str | None = None
    validation_files: list[str] | str | None = None
    validation_fraction: float = option(0.05, at_least=0, below=1)
    text_field: str | int | None = option("text")


@dataclass(frozen=True, kw_only=True)
class HubSettings(DataSettings):
    """`data=wikitext103`: a corpus of the hub with a validation split of its own."""

    revision: str | None = option(None)
    shard_characters: int = option(64_000_000, at_least=1)


@dataclass(frozen=True, kw_only=True)
class SplitHubSettings(HubSettings):
    """`data=wikipedia`: a corpus of the hub of which a fraction is held out."""

    validation_fraction: float = option(0.005, at_least=0, below=1)


SOURCES: dict[str, type[DataSettings]] = {
    "docstrings": PackageTextSettings,
    "comments": PackageTextSettings,
    "text": TextSettings,
    "wikitext103": HubSettings,
    "wikipedia": SplitHubSettings,
}


def data_settings(section: Mapping[str, Any]) -> DataSettings:
    """The data section, checked; nothing is read of the corpus.

    Raises:
        UserError: an unknown corpus or option, or a value that cannot be.
    """
    return read_choice("data", section, SOURCES)


def masked_count(mask_rate: float, sequence_length: int) -> int:
    """M, the masked tokens of a sequence of L.

    Raises:
        UserError: the rate leaves nothing to mask.
    """
    count = round(mask_rate * sequence_length)
    if count < 1:
        raise UserError(f"data.mask_rate {mask_rate} masks nothing in sequences of {sequence_length}: raise one")
    return count


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """A task of GLUE."""

    name: str = option()
    data: str | None = option(None)
    max_length: int | None = option(None, at_least=4, null="the sequence length of pretraining")
    freeze: str = option("none", choices=FREEZE)
    tuning_fraction: float | None = option(None, above=0, below=1)


@dataclass(frozen=True, kw_only=True)
class OwnTaskSettings(TaskSettings):
    """`task=classification`: the user's own files."""

    train_files: list[str] | str | None = None
    validation_files: list[str] | str | None = None
    text_columns: list[str] | None = None
    label_column: str | None = option(None)
    label_type: str | None = option(None, choices=(CLASSES, NUMBER))


def task_settings(section: Mapping[str, Any]) -> TaskSettings:
    """The task section, checked; no file is read.

    Raises:
        UserError: an unknown task or option, or a value that cannot be.
    """
    return read_choice("task", section, {**dict.fromkeys(GLUE_TASKS, TaskSettings), OWN_TASK: OwnTaskSettings})


def path_text(name: str, value: object) -> str | None:
    """A path that the user typed, ``~`` filled in; a folder may well be called 2024.

    Raises:
        UserError: the value is something else, such as nan, or has characters that no file name can have.
    """
    if isinstance(value, str) and not _encodable(value):
        raise UserError(f"{name} must be a path, and no file can be called {value!r}: correct it")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and value.startswith("~"):
        return os.path.expanduser(value)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{name} must be a path, not {value!r}: to call it that, write {name}=./{value}")
    return value or None


def _encodable(path: str) -> bool:
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False


def absolute_paths(data: dict[str, Any]) -> None:
    """Rewrites the files of a data or task section so that they mean the same from any folder."""
    for name in ("train_files", "validation_files", "data"):
        files = data.get(name)
        if isinstance(files, str):
            data[name] = absolute(files)
        elif isinstance(files, list):
            data[name] = [absolute(str(file)) for file in files]


def absolute(path: str) -> str:
    """A path or glob that means the same from any folder."""
    return os.path.abspath(os.path.expanduser(path))
