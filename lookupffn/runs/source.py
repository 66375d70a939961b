"""Models that exist: finding them in a run or model folder, and loading them without running a stranger's code."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    RobertaPreLayerNormConfig,
    RobertaPreLayerNormForMaskedLM,
)

from lookupffn.data.tokenizer import tokenizer_fingerprint
from lookupffn.errors import UserError
from lookupffn.models import LookupRobertaConfig, LookupRobertaForMaskedLM, load_stock_weights
from lookupffn.models.stored_weights import check_shapes
from lookupffn.runs.checkpoint import METADATA_FILE, list_checkpoints, newest_checkpoint, verify_checkpoint
from lookupffn.runs.folder import CHECKPOINTS, CONFIG, MODEL, SUMMARY, read_config
from lookupffn.storage import altered

_STOCK = RobertaPreLayerNormConfig.model_type
# fields of configs/model that a model's own config.json answers
_ARCHITECTURE = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "layer_norm_eps",
    "initializer_range",
    "position_init",
    "attention_init",
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelSource:
    """Where a model was found.

    Attributes:
        folder: the HuggingFace folder.
        run_config: config.yaml of the run it belongs to; None for a folder that belongs to no run.
        record: what the run noted beside it (summary.json or checkpoint.json); empty where it noted nothing.
    """

    folder: Path
    run_config: dict[str, Any] | None
    record: dict[str, Any]


def find_model(path: str | Path) -> ModelSource:
    """The model in a run folder (finished: model/; running: its newest whole checkpoint) or HuggingFace folder.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        raise UserError(f"no folder {path}: give a run folder such as outputs/..., or a HuggingFace model folder")
    if (path / CONFIG).exists() or (path / CHECKPOINTS).is_dir():
        run_config = read_config(path)
        if (path / SUMMARY).exists():
            return ModelSource(path / MODEL, run_config, finished_record(path))
        newest = newest_checkpoint(path / CHECKPOINTS)
        if newest is None:
            raise UserError(f"{path} has no checkpoint yet: wait for its first, or give another folder")
        return ModelSource(newest[0], run_config, newest[1])
    if not (path / "config.json").exists():
        raise UserError(f"{path} is neither a run folder (no {CONFIG}) nor a model folder (no config.json)")
    if (path / METADATA_FILE).exists():
        record, run = verify_checkpoint(path), path.resolve().parent.parent
    else:
        run = path.resolve().parent
        record = finished_record(run) if path.name == MODEL and (run / SUMMARY).exists() else {}
    return ModelSource(path, read_config(run) if record and (run / CONFIG).exists() else None, record)


def finished_record(run: Path) -> dict[str, Any]:
    """summary.json of a finished run whose model/ is what was written.

    Raises:
        UserError: it is not, or summary.json is damaged.
    """
    record = read_json(run / SUMMARY)
    files = record.get("model_sha256", {})  # runs of earlier versions noted nothing
    again = f"its last checkpoint is in {run / CHECKPOINTS}"
    try:
        name = altered(run / MODEL, files)
    except (OSError, AttributeError) as error:
        raise UserError(f"damaged model {run / MODEL}: a file of it cannot be read ({error}); {again}") from None
    if name:
        raise UserError(f"damaged model {run / MODEL}: {name} is not what was written; {again}")
    return record


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object")
    return value


def load_model_config(folder: Path) -> LookupRobertaConfig:
    """config.json of a model folder; transformers' own pre-norm RoBERTa is one with GEMM feed-forwards.

    Raises:
        UserError: unreadable, or of another kind of model.
    """
    values = read_json(folder / "config.json")
    if values.get("model_type") not in (LookupRobertaConfig.model_type, _STOCK):
        raise UserError(
            f"{folder}: model_type is {values.get('model_type')!r}; {LookupRobertaConfig.model_type!r} and "
            f"transformers' {_STOCK!r} can be loaded"
        )
    values["model_type"] = LookupRobertaConfig.model_type
    try:
        return LookupRobertaConfig.from_dict(values)
    except UserError:
        raise
    except Exception as error:  # whatever transformers makes of a config that it did not write
        raise UserError(f"{folder / 'config.json'} describes no model ({_first_line(error)})") from None


def load_model(folder: Path) -> LookupRobertaForMaskedLM:
    """The masked language model in a folder, every weight found in its safetensors.

    Raises:
        UserError: weights are missing, of other shapes, damaged, or not safetensors.
    """
    config = load_model_config(folder)
    stock = read_json(folder / "config.json")["model_type"] == _STOCK
    cls = RobertaPreLayerNormForMaskedLM if stock else LookupRobertaForMaskedLM
    check_shapes(folder, cls, config)
    try:
        model, info = cls.from_pretrained(
            folder,
            config=None if stock else config,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # whatever transformers makes of files that it did not write
        raise UserError(f"cannot load the weights in {folder} ({_first_line(error)})") from None
    absent = sorted(str(key) for key in (*info["missing_keys"], *info["mismatched_keys"]))
    if absent:
        raise UserError(f"{folder}: {len(absent)} weights are missing or of another shape, the first {absent[0]}")
    if stock:
        loaded, model = model, LookupRobertaForMaskedLM(config)
        load_stock_weights(model, loaded)
    return model


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a model folder.

    Raises:
        UserError: there is none, or its vocabulary is not the model's.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever its parsers raise
        raise UserError(f"cannot load a tokenizer from {folder} ({_first_line(error)})") from None
    check_vocabulary(tokenizer, load_model_config(folder), folder)
    return tokenizer


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, config: LookupRobertaConfig, folder: Path) -> None:
    """Raises a UserError where a tokenizer and a model do not have the same number of entries."""
    if len(tokenizer) != config.vocab_size:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} entries and the model in {folder} {config.vocab_size}: "
            f"they do not belong together; use the model's own (tokenizer=pretrained tokenizer.path={folder})"
        )


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
        logger.warning("init_from: the model in %s decides over ffn= and model= (%s)", folder, "; ".join(differing))
    config["ffn"] = dict(held.ffn)
    config["model"] = {
        **model,
        **{name: found[name] for name in _ARCHITECTURE},
        "name": (source.run_config or {}).get("model", {}).get("name", folder.name),
        "max_positions": held.max_position_embeddings - held.pad_token_id - 1,
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


def starting_model(config: dict[str, Any]) -> ModelSource | None:
    """What `init_from` names, adopted; None where it names nothing, or something gone that the run does without."""
    if not config["init_from"]:
        return None
    if not Path(config["init_from"]).expanduser().exists() and adopt_again(config):
        return None
    return adopt_model(config)


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


def own_tokenizer(path: Path, section: dict[str, Any]) -> dict[str, Any] | PreTrainedTokenizerBase:
    """A run's tokenizer section, or the tokenizer of its newest checkpoint where the folder that it names is gone."""
    named = Path(str(section.get("path") or ""))
    if section.get("name") != "pretrained" or not named.is_absolute() or named.exists():
        return section
    newest = newest_checkpoint(path / CHECKPOINTS)
    return section if newest is None else load_tokenizer(newest[0])


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
