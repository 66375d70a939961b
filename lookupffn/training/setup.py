"""From a composed config to plain values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lookupffn.config.paths import absolute, absolute_paths, path_text
from lookupffn.config.race import without_race
from lookupffn.errors import UserError
from lookupffn.objectives import Objective

_SECTIONS = ("optimizer", "training", "tracker")


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
    for name in ("seed", "overwrite", *objective_class.paths):
        if name not in config:
            raise UserError(f"the config has no {name}, which the file of this command in configs/ gives")
    for name in objective_class.paths:
        config[name] = path_text(name, config[name])
    for section in ("data", "task"):
        absolute_paths(config.get(section, {}))
    tokenizer_path = config.get("tokenizer", {}).get("path")
    # a folder, or else a name on the hub
    if tokenizer_path and Path(str(tokenizer_path)).expanduser().is_dir():
        config["tokenizer"]["path"] = absolute(tokenizer_path)
    return config
