"""evaluate.py's one function: a model folder, a validation split, a number."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lookupffn.config.data import DataSettings, absolute_paths, data_settings, path_text
from lookupffn.config.sections import read_section
from lookupffn.data import PreparedData, prepare_data
from lookupffn.distributed.processes import start_accelerator, sum_over
from lookupffn.errors import UserError
from lookupffn.models import LookupRobertaForMaskedLM
from lookupffn.models.loading import load_model, load_tokenizer
from lookupffn.objectives.base import check_validation
from lookupffn.objectives.mlm import build_masker, mlm_costs
from lookupffn.objectives.model_config import check_tokenizer
from lookupffn.objectives.perplexity import EvaluationResult, evaluate_mlm, perplexity, unigram_loss
from lookupffn.report import evaluation_table
from lookupffn.runs.model_source import ModelSource, find_model
from lookupffn.runs.records import read_token_counts
from lookupffn.runs.summary import surroundings
from lookupffn.storage import cache_root, to_json, write_atomically

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
    source = find_model(checkpoint)
    assumed = cfg.model.sequence_length is None and source.run_config is None
    section, own = choose_data(cfg, source)
    data_config, evaluation = data_settings(section), read_section("evaluation", cfg.evaluation)
    max_tokens = evaluation.max_tokens
    if max_tokens is None and own:
        max_tokens = source.run_config["evaluation"]["max_tokens"]

    accelerator = start_accelerator()
    model, data = load(source, data_config, cache_dir)
    warn_of_other_text(source, data, own)
    model.to(accelerator.device)
    masker = build_masker(data, data_config.mask_rate)
    started = time.perf_counter()
    result = evaluate_mlm(
        model, data.validation, masker,
        data_fingerprint=data.data_fingerprint, batch_size=evaluation.batch_size, max_tokens=max_tokens,
        rank=accelerator.process_index, world_size=accelerator.num_processes, reduce=sum_over(accelerator),
        progress=accelerator.is_main_process,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    check_validation(result.loss, str(source.folder), model)
    scored = {
        "checkpoint": str(source.folder),
        "step": source.record.get("step", source.record.get("steps")),
        "data": data.name,
        **quality(result, source, data),
        "sequence_length_assumed": assumed,
        **mlm_costs(model, masker, data.validation.sequence_length),
        "batch_size": evaluation.batch_size,
        "processes": accelerator.num_processes,
        "seconds": seconds,
        "tokens_per_s": result.sequences * data.validation.sequence_length / seconds,
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


def load(
    source: ModelSource, data_config: DataSettings, cache_dir: str | None
) -> tuple[LookupRobertaForMaskedLM, PreparedData]:
    """The model, and the validation split in its own tokens.

    Raises:
        UserError: one of them cannot be read, or they do not fit each other.
    """
    model = load_model(source.folder)
    tokenizer = load_tokenizer(source.folder)
    check_tokenizer(tokenizer, source)
    if data_config.sequence_length > model.config.max_positions:
        raise UserError(f"model.sequence_length={data_config.sequence_length} is longer than the model's positions")
    return model, prepare_data(data_config, tokenizer, cache_root(cache_dir), splits=("validation",))


def warn_of_other_text(source: ModelSource, data: PreparedData, own: bool) -> None:
    """A warning where a run's own validation text has changed."""
    recorded = source.record.get("data_fingerprint")
    # the first half of a fingerprint names the validation tokens
    same_length = own and source.run_config["data"]["sequence_length"] == data.validation.sequence_length
    if same_length and recorded is not None and recorded[:16] != data.data_fingerprint[:16]:
        logger.warning("the validation text is not what the run was scored on: its files or packages have changed")


def quality(result: EvaluationResult, source: ModelSource, data: PreparedData) -> dict[str, Any]:
    """The score, the bar, and how much of the text they are of.

    The bar is the unigram of the run's training text on the whole split. Where that text is not known (the folder
    belongs to no run, or to one of an earlier version), it is the split's own: the best that any unigram could do.
    """
    known = None if source.run is None else read_token_counts(source.run, len(data.validation_counts))
    bar = unigram_loss(data.validation_counts if known is None else known, data.validation_counts)
    length, split = data.validation.sequence_length, len(data.validation)
    logger.info("scored %s of the %s tokens of the split", f"{result.sequences * length:,}", f"{split * length:,}")
    return {
        "validation_loss": result.loss,
        "validation_perplexity": result.perplexity,
        "unigram_loss": bar,
        "unigram_perplexity": perplexity(bar),
        "unigram_of": "the training text" if known is not None else "the scored text",
        "masked_validation_tokens": result.masked_tokens,
        "validation_sequences": result.sequences,
        "validation_tokens": result.sequences * length,
        "split_tokens": split * length,
        "sequence_length": length,
    }


def choose_data(cfg: DictConfig, source: ModelSource) -> tuple[dict[str, Any], bool]:
    """The data section to score on.

    Returns:
        The section, and whether its text is the run's own.

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
        return {**run["data"], **({} if length is None else {"sequence_length": length})}, True
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
