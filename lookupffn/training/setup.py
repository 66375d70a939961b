"""From a composed config to what the loop runs on: checked values, a point to go on from, a model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from lookupffn.data import Masker, PreparedData
from lookupffn.errors import UserError, unknown_name
from lookupffn.ffn import resolve_options
from lookupffn.model import LookupRobertaForMaskedLM, build_model_config
from lookupffn.training.checkpoint import newest_checkpoint, remove_partial
from lookupffn.training.run_folder import CHECKPOINTS
from lookupffn.training.settings import (
    TrainingSettings,
    evaluation_settings,
    optimizer_settings,
    training_settings,
)
from lookupffn.training.source import check_vocabulary, load_model
from lookupffn.training.tracking import check_tracker

OUTPUT_BIAS_INITS = ("zeros", "unigram")


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """The config as plain values, with paths that hold from any folder.

    Raises:
        UserError: a section is missing.
    """
    config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    for section in ("ffn", "model", "data", "tokenizer", "optimizer", "training", "tracker", "evaluation"):
        if not isinstance(config.get(section), dict):
            raise UserError(f"the config has no {section}: choose one, as in {section}=<name>")
    absolute_paths(config["data"])
    tokenizer_path = config["tokenizer"].get("path")
    # a folder, or else a name on the hub
    if tokenizer_path and Path(str(tokenizer_path)).expanduser().is_dir():
        config["tokenizer"]["path"] = absolute(tokenizer_path)
    return config


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


def check_config(config: dict[str, Any]) -> TrainingSettings:
    """Refuses what can be refused before the corpus is prepared.

    Raises:
        UserError: a value that cannot be.
    """
    seed = config["seed"]
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise UserError(f"seed must be a whole number from 0, not {seed!r}")
    settings = training_settings(config["training"], 1)
    optimizer_settings(config["optimizer"])
    evaluation_settings(config["evaluation"])
    check_tracker(config["tracker"])
    ffn = dict(config["ffn"])
    if "name" not in ffn:
        raise UserError("ffn has no name: choose one, as in ffn=lookup")
    resolve_options(ffn.pop("name"), config["model"]["hidden_size"], ffn)
    bias_init = config["model"].get("output_bias_init", "zeros")
    if bias_init not in OUTPUT_BIAS_INITS:
        raise unknown_name("model.output_bias_init", bias_init, OUTPUT_BIAS_INITS)
    length, positions = config["data"].get("sequence_length"), config["model"]["max_positions"]
    if isinstance(length, int) and length > positions:
        raise UserError(f"sequence_length={length} is longer than model.max_positions={positions}")
    if settings.precision == "fp16" and not torch.cuda.is_available():
        raise UserError("training.precision=fp16 needs a GPU; on this machine use fp32 or bf16")
    return settings


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
    config: dict[str, Any], data: PreparedData, checkpoint: Path | None, init_folder: Path | None
) -> LookupRobertaForMaskedLM:
    """The model of the run: from its checkpoint, from `init_from`, or new."""
    torch.manual_seed(config["seed"])
    folder = checkpoint or init_folder
    if folder is not None:
        model = load_model(folder)
        check_vocabulary(data.tokenizer, model.config, folder)
        return model
    model = LookupRobertaForMaskedLM(build_model_config(config["model"], config["ffn"], data.tokenizer))
    if config["model"].get("output_bias_init") == "unigram":
        with torch.no_grad():
            model.lm_head.bias.copy_(unigram_log_probabilities(data.token_counts))
    return model


def unigram_log_probabilities(token_counts: np.ndarray) -> torch.Tensor:
    """Log frequencies of the training text, one added to each count: [V] float32.

    As the output bias they start a model at the unigram loss. Learning them instead moves all token embeddings the same
    way, since the output matrix is tied to them, and tokens look alike to attention for longer.
    """
    counts = token_counts + 1.0
    return torch.from_numpy(np.log(counts / counts.sum())).float()
