"""From a composed config to plain values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lookupffn.config.paths import absolute, absolute_paths, path_text
from lookupffn.errors import UserError

# settings that name a file or folder
_PATHS = ("output_dir", "cache_dir", "init_from")


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """The config as plain values, with paths that hold from any folder.

    Raises:
        UserError: a section is missing, or a path is something else.
    """
    config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    for section in ("ffn", "model", "data", "tokenizer", "optimizer", "training", "tracker", "evaluation"):
        if not isinstance(config.get(section), dict):
            raise UserError(f"the config has no {section}: choose one, as in {section}=<name>")
    for name in ("seed", "overwrite", *_PATHS):
        if name not in config:
            raise UserError(f"the config has no {name}, which configs/train.yaml gives")
    for name in _PATHS:
        config[name] = path_text(name, config[name])
    absolute_paths(config["data"])
    tokenizer_path = config["tokenizer"].get("path")
    # a folder, or else a name on the hub
    if tokenizer_path and Path(str(tokenizer_path)).expanduser().is_dir():
        config["tokenizer"]["path"] = absolute(tokenizer_path)
    return config
