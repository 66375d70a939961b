"""From a composed config to what the loop runs on: checked values, a point to go on from, a model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from lookupffn.data import Masker, PreparedData
from lookupffn.errors import UserError
from lookupffn.models import LookupRobertaForMaskedLM, build_model_config
from lookupffn.models.loading import check_vocabulary, load_model
from lookupffn.objectives.mlm import unigram_log_probabilities
from lookupffn.objectives.pretrained import check_tokenizer
from lookupffn.runs.checkpoint import newest_checkpoint, remove_partial
from lookupffn.runs.model_source import ModelSource
from lookupffn.runs.names import CHECKPOINTS

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


def path_text(name: str, value: object) -> str | None:
    """A path that the user typed; a folder may well be called 2024.

    Raises:
        UserError: the value is something else, such as nan.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{name} must be a path, not {value!r}: to call it that, write {name}=./{value}")
    return value or None


def absolute_paths(data: dict[str, Any]) -> None:
    """Rewrites the files of a data section so that they mean the same from any folder."""
    for name in ("train_files", "validation_files"):
        files = data.get(name)
        if isinstance(files, str):
            data[name] = absolute(files)
        elif isinstance(files, list):
            data[name] = [absolute(str(file)) for file in files]


def absolute(path: str) -> str:
    """A path or glob that means the same from any folder."""
    return os.path.abspath(os.path.expanduser(path))


def build_masker(data: PreparedData, mask_rate: float) -> Masker:
    """The masker of a tokenizer."""
    tokenizer = data.tokenizer
    return Masker(len(tokenizer), tokenizer.mask_token_id, tokenizer.all_special_ids, mask_rate)


def cache_folder(configured: str | None) -> Path:
    """Where prepared corpora are kept."""
    return Path(configured or os.environ.get("LOOKUPFFN_CACHE") or Path.home() / ".cache" / "lookupffn").expanduser()


def resume_point(path: Path, data: PreparedData) -> tuple[Path | None, dict[str, Any]]:
    """The checkpoint to go on from and its record, (None, {}) for a new run.

    Raises:
        UserError: every checkpoint is damaged, or the corpus is not the one that the run started with.
    """
    for folder in (path, path / CHECKPOINTS):
        remove_partial(folder)
    found = newest_checkpoint(path / CHECKPOINTS)
    if found is None:
        return None, {}
    for name in ("data_fingerprint", "tokenizer_fingerprint"):
        if found[1].get(name) != getattr(data, name):
            raise UserError(
                f"{path}: the {name.removesuffix('_fingerprint')} is not what this run started with (its files or "
                "packages have changed): start a new run with another output_dir"
            )
    return found


def build_model(
    config: dict[str, Any], data: PreparedData, checkpoint: Path | None, init: ModelSource | None
) -> LookupRobertaForMaskedLM:
    """The model of the run: from its checkpoint, from `init_from`, or new."""
    torch.manual_seed(config["seed"])
    if checkpoint is not None:  # resume_point has compared the tokenizers
        return load_model(checkpoint)
    if init is not None:
        model = load_model(init.folder)
        check_vocabulary(data.tokenizer, model.config, init.folder)
        check_tokenizer(data.tokenizer, init)
        return model
    model = LookupRobertaForMaskedLM(build_model_config(config["model"], config["ffn"], data.tokenizer))
    if config["model"].get("output_bias_init") == "unigram":
        # Learned, the unigram moves all token embeddings the same way, since the output matrix is tied to them, and
        # tokens look alike to attention for longer.
        with torch.no_grad():
            model.lm_head.bias.copy_(torch.from_numpy(unigram_log_probabilities(data.token_counts)))
    return model
