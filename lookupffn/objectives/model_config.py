"""What a run takes from the model that `init_from` names: architecture, sizes and tokenizer."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from lookupffn.config.sections import ModelSettings, PretrainedTokenizerSettings, TokenizerSettings
from lookupffn.data.tokenizer import tokenizer_fingerprint
from lookupffn.errors import UserError
from lookupffn.models.loading import load_model_config, load_tokenizer
from lookupffn.runs.checkpoint import list_checkpoints, newest_checkpoint
from lookupffn.runs.model_source import ModelSource, find_model
from lookupffn.runs.names import CHECKPOINTS, SUMMARY
from lookupffn.runs.records import read_config

logger = logging.getLogger(__name__)

# what a model's own config.json answers
_ARCHITECTURE = ModelSettings.architecture()


def starting_model(config: dict[str, Any]) -> ModelSource | None:
    """What `init_from` names, adopted; None where it names nothing, or something gone that the run does without."""
    if not config["init_from"]:
        return None
    if not Path(config["init_from"]).expanduser().exists() and adopt_again(config):
        return None
    return adopt_model(config)


def adopt_model(config: dict[str, Any]) -> ModelSource:
    """Makes a run's config say what `init_from` holds: its feed-forward, its sizes and its tokenizer.

    Args:
        config: the resolved config; `ffn`, `model`, `tokenizer` and `init_from` are rewritten.

    Returns:
        The model; its folder is absolute.

    Raises:
        UserError: no model there, or it is too short for the run's sequences.
    """
    source = find_model(config["init_from"])
    source = replace(source, folder=source.folder.resolve())
    folder = source.folder
    held = load_model_config(folder)
    model = config["model"]
    wanted = {"ffn": config["ffn"].get("name"), **{name: model.get(name) for name in _ARCHITECTURE}}
    found = {"ffn": held.ffn["name"], **{name: getattr(held, name) for name in _ARCHITECTURE}}
    differing = [f"{name} {found[name]}, not {wanted[name]}" for name in found if found[name] != wanted[name]]
    if differing:
        logger.warning("init_from: ffn and model are those of the model in %s (%s)", folder, "; ".join(differing))
    config["ffn"] = dict(held.ffn)
    config["model"] = {
        **model,
        **{name: found[name] for name in _ARCHITECTURE},
        "name": (source.run_config or {}).get("model", {}).get("name", folder.name),
        "max_positions": held.max_positions,
    }
    length = model.get("sequence_length")
    if isinstance(length, int) and length > config["model"]["max_positions"]:
        raise UserError(
            f"model.sequence_length={length} is longer than the {config['model']['max_positions']} "
            f"positions of the model in {folder}"
        )
    config["init_from"] = str(folder)
    # a newly trained vocabulary would not fit the embeddings
    if config["tokenizer"].get("name") == "trained":
        config["tokenizer"] = {"name": "pretrained", "path": str(folder)}
    return source


def adopt_again(config: dict[str, Any]) -> bool:
    """Does what ``adopt_model`` did when a run began, from the run's own config.yaml.

    An unfinished run can go on without the model that it started from: its checkpoints hold all it needs.

    Args:
        config: as for ``adopt_model``.

    Returns:
        Whether there is such a run; without one the config is as it was.
    """
    source = str(Path(config["init_from"]).expanduser().resolve())
    parent = Path(config["output_dir"] or "outputs")
    for path in (parent, *sorted(parent.glob("*"))):
        if (path / SUMMARY).exists() or not list_checkpoints(path / CHECKPOINTS):
            continue
        try:
            run = read_config(path)
        except UserError:
            continue
        if run.get("init_from") == source:
            logger.warning("init_from: %s is gone; going on without it", source)
            adopted = (*_ARCHITECTURE, "name", "max_positions")
            config["model"] = {**config["model"], **{key: run["model"][key] for key in adopted}}
            config.update(ffn=run["ffn"], tokenizer=run["tokenizer"], init_from=source)
            return True
    return False


def own_tokenizer(path: Path, settings: TokenizerSettings) -> TokenizerSettings | PreTrainedTokenizerBase:
    """A run's tokenizer section, or the tokenizer of its newest checkpoint where the folder that it names is gone."""
    if not isinstance(settings, PretrainedTokenizerSettings):
        return settings
    named = Path(settings.path or "")
    if not named.is_absolute() or named.exists():
        return settings
    newest = newest_checkpoint(path / CHECKPOINTS)
    return settings if newest is None else load_tokenizer(newest[0])


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, source: ModelSource) -> None:
    """Raises a UserError where a tokenizer is not the one that a model was trained with, whatever its size."""
    expected = source.record.get("tokenizer_fingerprint")
    if expected is None:
        try:
            expected = tokenizer_fingerprint(load_tokenizer(source.folder))
        except UserError as error:
            logger.warning("cannot tell whether the tokenizer is the model's own: %s", error)
            return
    if tokenizer_fingerprint(tokenizer) != expected:
        raise UserError(
            f"the tokenizer is not the one that the model in {source.folder} was trained with: they do not belong "
            f"together; use the model's own (tokenizer=pretrained tokenizer.path={source.folder})"
        )
