"""evaluate.py's one function: a model folder, a validation split, a number."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lookupffn.config.paths import absolute_paths, path_text
from lookupffn.config.sections import evaluation_settings
from lookupffn.data import prepare_data
from lookupffn.distributed.processes import start_accelerator, sum_over
from lookupffn.errors import UserError
from lookupffn.models.loading import load_model, load_tokenizer
from lookupffn.objectives.base import model_costs
from lookupffn.objectives.finite import check_validation
from lookupffn.objectives.mlm import build_masker
from lookupffn.objectives.perplexity import evaluate_mlm
from lookupffn.objectives.pretrained import check_tokenizer
from lookupffn.report import evaluation_table
from lookupffn.runs.machine import surroundings
from lookupffn.runs.model_source import ModelSource, find_model
from lookupffn.storage import cache_root, to_json, write_atomically
from lookupffn.training.checks import check_data

DEFAULT_OUTPUT = "evaluation.json"
# a folder without a run does not say what lengths it was trained on; BERT's short phase is a safe guess
ASSUMED_LENGTH = 128

logger = logging.getLogger(__name__)


def score(cfg: DictConfig) -> dict[str, Any]:
    """Scores a model, prints a table and writes JSON.

    Args:
        cfg: the composed config (configs/evaluate.yaml).

    Returns:
        What the JSON holds.

    Raises:
        UserError: no such model, no such text, or they do not fit each other.
    """
    checkpoint, output, cache_dir = (path_text(name, cfg[name]) for name in ("checkpoint", "output", "cache_dir"))
    if not checkpoint:
        raise UserError("say what to score: checkpoint=<run folder or HuggingFace folder>, such as outputs/...")
    batch_size, max_tokens = evaluation_settings(cfg.evaluation)
    source = find_model(checkpoint)
    assumed = cfg.model.sequence_length is None and source.run_config is None
    data_config, own = choose_data(cfg, source)
    check_data(data_config)
    if max_tokens is None and source.run_config is not None:
        max_tokens = source.run_config["evaluation"]["max_tokens"]

    accelerator = start_accelerator()
    model = load_model(source.folder)
    tokenizer = load_tokenizer(source.folder)
    check_tokenizer(tokenizer, source)
    length, positions = data_config["sequence_length"], model.config.max_position_embeddings
    if length > positions - model.config.pad_token_id - 1:
        raise UserError(f"model.sequence_length={length} is longer than the model's positions")
    data = prepare_data(data_config, tokenizer, cache_root(cache_dir), splits=("validation",))
    recorded = source.record.get("data_fingerprint")
    # the first half of a fingerprint names the validation tokens
    same_text = recorded is not None and recorded[:16] == data.data_fingerprint[:16]
    if own and recorded is not None and not same_text:
        logger.warning("the validation text is not what the run was scored on: its files or packages have changed")

    model.to(accelerator.device)
    masker = build_masker(data, data_config["mask_rate"])
    started = time.perf_counter()
    result = evaluate_mlm(
        model, data.validation, masker,
        data_fingerprint=data.data_fingerprint, batch_size=batch_size, max_tokens=max_tokens,
        rank=accelerator.process_index, world_size=accelerator.num_processes, reduce=sum_over(accelerator),
        progress=accelerator.is_main_process,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    record_step = source.record.get("step", source.record.get("steps"))
    check_validation(result.loss, str(source.folder), model)
    same_tokens = same_text and source.run_config is not None and (
        max_tokens == source.run_config["evaluation"]["max_tokens"]
        and data_config["mask_rate"] == source.run_config["data"]["mask_rate"]
    )  # fmt: skip
    scored = {
        "checkpoint": str(source.folder),
        "step": record_step,
        "data": data_config["name"],
        "validation_loss": result.loss,
        "validation_perplexity": result.perplexity,
        # of the training text's frequencies; known only for the tokens that the run itself was scored on
        "unigram_perplexity": source.record.get("unigram_perplexity") if same_tokens else None,
        "masked_validation_tokens": result.masked_tokens,
        "validation_sequences": result.sequences,
        "validation_tokens": result.sequences * length,
        "sequence_length": length,
        "sequence_length_assumed": assumed,
        **model_costs(model, model.cost(length, masker.masked_per_sequence(length) / length)),
        "batch_size": batch_size,
        "processes": accelerator.num_processes,
        "seconds": seconds,
        "tokens_per_s": result.sequences * length / seconds,
        "data_fingerprint": data.data_fingerprint,
        "tokenizer_fingerprint": data.tokenizer_fingerprint,
        **surroundings(accelerator.device),
    }
    if accelerator.is_main_process:
        sys.stdout.write(evaluation_table(scored))
        sys.stdout.flush()
        write_result(scored, output, Path(checkpoint).expanduser())
    accelerator.wait_for_everyone()
    return scored


def choose_data(cfg: DictConfig, source: ModelSource) -> tuple[dict[str, Any], bool]:
    """The data section to score on, and whether it is the run's own.

    Raises:
        UserError: neither the command nor the folder names any text.
    """
    run = source.run_config
    if cfg.get("data") is None and run is None:
        raise UserError(
            f"{source.folder} belongs to no run, so say what to score it on: data=docstrings, or "
            "data=text data.validation_files=..."
        )
    length = cfg.model.sequence_length
    if cfg.get("data") is None:
        return {**run["data"], **({} if length is None else {"sequence_length": length})}, length is None
    if length is None:
        cfg.model.sequence_length = run["data"]["sequence_length"] if run else ASSUMED_LENGTH
    data = OmegaConf.to_container(cfg.data, resolve=True, throw_on_missing=True)
    absolute_paths(data)
    return data, run is not None and data == run["data"]


def write_result(scored: dict[str, Any], output: str | None, checkpoint: Path) -> None:
    """The JSON, where the user said, else evaluation.json in the folder that was scored.

    Raises:
        UserError: the place the user said cannot be written.
    """
    path = Path(output).expanduser() if output else checkpoint / DEFAULT_OUTPUT
    try:
        if output:
            path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, to_json(scored, indent=2))
    except OSError as error:
        if output:
            raise UserError(f"cannot write {path}: {error.strerror}") from None
        logger.warning("cannot write %s (%s); give output=<path> to keep the result", path, error.strerror)
    else:
        logger.info("written: %s", path)
