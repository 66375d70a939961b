"""What can be refused before the corpus is prepared: every number and name of a config, in one line each."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from lookupffn.config.numbers import share, whole
from lookupffn.config.sections import (
    TrainingSettings,
    evaluation_settings,
    optimizer_settings,
    training_settings,
)
from lookupffn.data.masking import masked_count
from lookupffn.data.tokenizer import SPECIAL_TOKENS
from lookupffn.errors import UserError, unknown_name
from lookupffn.layers import resolve_options
from lookupffn.models import build_model_config
from lookupffn.training.tracking import check_tracker

OUTPUT_BIAS_INITS = ("zeros", "unigram")
SHORTEST_SEQUENCE = 8
# every byte has an entry
SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS) + 1
LARGEST_SEED = 2**63 - 1
_MODEL_COUNTS = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "max_positions")
_MODEL_RATES = ("hidden_dropout_prob", "attention_probs_dropout_prob")
_MODEL_POSITIVES = ("layer_norm_eps", "initializer_range")
_FIELD = re.compile(r"[Ff]ield '(\w+)'")


class _PlaceholderTokenizer:
    """What a model's configuration asks of a tokenizer, before there is one."""

    bos_token_id, pad_token_id, eos_token_id = 0, 1, 2

    def __len__(self) -> int:
        return SMALLEST_VOCABULARY


def check_config(config: Mapping[str, Any]) -> TrainingSettings:
    """Refuses what can be refused before the corpus is prepared.

    Args:
        config: the resolved config.

    Raises:
        UserError: a value that cannot be.
    """
    seed = config["seed"]
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= LARGEST_SEED:
        raise UserError(f"seed must be a whole number from 0 to {LARGEST_SEED}, not {seed!r}")
    if not isinstance(config["overwrite"], bool):
        raise UserError(f"overwrite must be true or false, not {config['overwrite']!r}")
    settings = training_settings(config["training"], 1)
    optimizer_settings(config["optimizer"])
    evaluation_settings(config["evaluation"])
    check_tracker(config["tracker"])
    check_model(config["model"], config["ffn"])
    check_data(config["data"], config["model"]["max_positions"])
    check_tokenizer_section(config["tokenizer"])
    if settings.precision == "fp16" and not torch.cuda.is_available():
        raise UserError("training.precision=fp16 needs a GPU; on this machine use fp32 or bf16")
    return settings


def check_model(model: Mapping[str, Any], ffn: Mapping[str, Any]) -> None:
    """The model and ffn sections: builds the model's configuration, and nothing more.

    Raises:
        UserError: a value that cannot be.
    """
    for name in _MODEL_COUNTS:
        whole(model.get(name), f"model.{name}", 1)
    for name in _MODEL_RATES:
        share(model.get(name), f"model.{name}", zero=True)
    for name in _MODEL_POSITIVES:
        value = model.get(name)
        if not isinstance(value, float) or not 0 < value < math.inf:
            raise UserError(f"model.{name} is {value!r}: it must be a number above 0 with a decimal point")
    bias_init = model.get("output_bias_init", "zeros")
    if bias_init not in OUTPUT_BIAS_INITS:
        raise unknown_name("model.output_bias_init", bias_init, OUTPUT_BIAS_INITS)
    options = dict(ffn)
    if "name" not in options:
        raise UserError("ffn has no name: choose one, as in ffn=lookup")
    resolve_options(options.pop("name"), model["hidden_size"], options)
    try:
        build_model_config(model, ffn, _PlaceholderTokenizer())
    except UserError:
        raise
    except (StrictDataclassError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        field = _FIELD.search(reason)
        raise UserError(f"model{f'.{field[1]}' if field else ''} cannot be that: {reason}") from None


def check_data(data: Mapping[str, Any], max_positions: int | None = None) -> None:
    """The numbers of a data section.

    Args:
        data: the section.
        max_positions: longest sequence of the model; None where that is checked elsewhere.

    Raises:
        UserError: a value that cannot be.
    """
    length = whole(data.get("sequence_length"), "model.sequence_length", SHORTEST_SEQUENCE)
    if max_positions is not None and length > max_positions:
        raise UserError(f"sequence_length={length} is longer than model.max_positions={max_positions}")
    masked_count(data.get("mask_rate"), length)
    if data.get("validation_fraction") is not None:
        share(data["validation_fraction"], "data.validation_fraction", zero=True)
    if data.get("shard_characters") is not None:
        whole(data["shard_characters"], "data.shard_characters", 1)


def check_tokenizer_section(tokenizer: Mapping[str, Any]) -> None:
    """The numbers of a tokenizer section.

    Raises:
        UserError: a value that cannot be.
    """
    if "vocab_size" in tokenizer:
        whole(tokenizer["vocab_size"], "tokenizer.vocab_size", SMALLEST_VOCABULARY)
    if tokenizer.get("max_characters") is not None:
        whole(tokenizer["max_characters"], "tokenizer.max_characters", 1, ", or null for all")
