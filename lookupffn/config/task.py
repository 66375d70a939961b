"""The `task` section of a fine-tuning run; the tasks themselves are in lookupffn.data.labelled."""

from __future__ import annotations

from dataclasses import dataclass

from lookupffn.config.schema import option

FREEZE = ("none", "tables", "ffn", "encoder")
CLASSES, NUMBER = "classes", "number"


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
