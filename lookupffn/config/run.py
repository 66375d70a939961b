"""A run's config: resolved to plain values, then read once into one object that the rooms are handed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lookupffn.config.data import (
    DataSettings,
    TaskSettings,
    absolute,
    absolute_paths,
    data_settings,
    path_text,
    task_settings,
)
from lookupffn.config.race import without_race
from lookupffn.config.schema import read, texts_of
from lookupffn.config.sections import (
    TOKENIZERS,
    TRACKERS,
    EvaluationSettings,
    ModelSettings,
    OptimizerSettings,
    RunSettings,
    TokenizerSettings,
    TrackerSettings,
    TrainingSettings,
    read_choice,
    read_section,
)
from lookupffn.errors import UserError

# of every run; the others are its objective's
_SECTIONS = ("optimizer", "training", "tracker")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A run's config, every section checked.

    Attributes:
        values: the same as plain values, as config.yaml records them.
        run: what stands outside of all sections.
        transformers: options in the model section that ModelSettings does not have; transformers checks them.
        ffn: a feed-forward's name and options; the feed-forward checks them.
        data, task: None where the objective has no such section.
    """

    values: dict[str, Any]
    run: RunSettings
    training: TrainingSettings
    optimizer: OptimizerSettings
    tracker: TrackerSettings
    model: ModelSettings
    transformers: dict[str, Any]
    ffn: dict[str, Any]
    tokenizer: TokenizerSettings
    evaluation: EvaluationSettings
    data: DataSettings | None
    task: TaskSettings | None

    def check(self) -> None:
        """Compares the sections with each other."""
        positions = self.model.max_positions
        if self.data is not None and self.data.sequence_length > positions:
            raise UserError(
                f"sequence_length={self.data.sequence_length} is longer than model.max_positions={positions}"
            )
        if self.task is not None and self.task.max_length is not None and self.task.max_length > positions:
            raise UserError(f"task.max_length={self.task.max_length} is longer than model.max_positions={positions}")


def resolve(cfg: DictConfig, sections: Sequence[str]) -> dict[str, Any]:
    """A composed config as plain values, with paths that hold from any folder.

    Args:
        cfg: the config.
        sections: what the objective needs, beside what every run does.

    Raises:
        UserError: a section is missing, or a path is something else.
    """
    values = OmegaConf.to_container(without_race(cfg), resolve=True, throw_on_missing=True)
    for key in ("hardware", "hardware_file"):  # where the time is projected to is no part of a run
        values.pop(key, None)
    if "checkpoint" in values:  # what fine-tuning calls it
        values["init_from"] = values.pop("checkpoint")
    for section in (*sections, *_SECTIONS):
        if not isinstance(values.get(section), dict):
            raise UserError(f"the config has no {section}: choose one, as in {section}=<name>")
    paths = texts_of(RunSettings)
    for key in ("seed", "overwrite", *paths):
        if key not in values:
            raise UserError(f"the config has no {key}, which the file of this command in configs/ gives")
    for key in paths:
        values[key] = path_text(key, values[key])
    for section in ("data", "task"):
        absolute_paths(values.get(section, {}))
    tokenizer_path = values.get("tokenizer", {}).get("path")
    # a folder, or else a name on the hub
    if tokenizer_path and Path(str(tokenizer_path)).expanduser().is_dir():
        values["tokenizer"]["path"] = absolute(tokenizer_path)
    return values


def read_run(values: dict[str, Any]) -> RunConfig:
    """The config of resolved values: the only place where the sections of a run are read.

    Raises:
        UserError: a value that cannot be.
    """
    if "name" not in values["ffn"]:
        raise UserError("ffn has no name: choose one, as in ffn=lookup")
    own = {field.name for field in fields(ModelSettings)}
    model = {name: value for name, value in values["model"].items() if name in own}
    outside = {name: value for name, value in values.items() if not isinstance(value, dict)}
    config = RunConfig(
        values=values,
        run=read(RunSettings, outside, "", "setting"),
        training=read_section("training", values["training"]),
        optimizer=read_section("optimizer", values["optimizer"]),
        tracker=read_choice("tracker", values["tracker"], TRACKERS),
        model=read_section("model", model),
        transformers={name: value for name, value in values["model"].items() if name not in own},
        ffn=values["ffn"],
        tokenizer=read_choice("tokenizer", values["tokenizer"], TOKENIZERS),
        evaluation=read_section("evaluation", values["evaluation"]),
        data=data_settings(values["data"]) if "data" in values else None,
        task=task_settings(values["task"]) if "task" in values else None,
    )
    config.check()
    return config
