"""What can be refused before the corpus is prepared: every value of a config, in one line each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from lookupffn.config.data import data_settings
from lookupffn.config.schema import read
from lookupffn.config.sections import (
    SMALLEST_VOCABULARY,
    TOKENIZERS,
    RunSettings,
    TrainingSettings,
    evaluation_settings,
    optimizer_settings,
    read_choice,
    training_settings,
)
from lookupffn.errors import UserError
from lookupffn.models import build_model_config
from lookupffn.training.tracking import check_tracker

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
    read(RunSettings, {key: value for key, value in config.items() if not isinstance(value, dict)}, "", "setting")
    settings = training_settings(config["training"], 1)
    optimizer_settings(config["optimizer"])
    evaluation_settings(config["evaluation"])
    check_tracker(config["tracker"])
    check_model(config["model"], config["ffn"])
    check_data(config["data"], config["model"]["max_positions"])
    read_choice("tokenizer", config["tokenizer"], TOKENIZERS)
    if settings.precision == "fp16" and not torch.cuda.is_available():
        raise UserError("training.precision=fp16 needs a GPU; on this machine use fp32 or bf16")
    return settings


def check_model(model: Mapping[str, Any], ffn: Mapping[str, Any]) -> None:
    """The model and ffn sections: builds the model's configuration, and nothing more.

    Raises:
        UserError: a value that cannot be.
    """
    if "name" not in ffn:
        raise UserError("ffn has no name: choose one, as in ffn=lookup")
    try:
        build_model_config(model, ffn, _PlaceholderTokenizer())
    except UserError:
        raise
    except (StrictDataclassError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        field = _FIELD.search(reason)
        raise UserError(f"model{f'.{field[1]}' if field else ''} cannot be that: {reason}") from None


def check_data(data: Mapping[str, Any], max_positions: int | None = None) -> None:
    """The data section.

    Args:
        data: the section.
        max_positions: longest sequence of the model; None where that is checked elsewhere.

    Raises:
        UserError: a value that cannot be.
    """
    length = data_settings(data).sequence_length
    if max_positions is not None and length > max_positions:
        raise UserError(f"sequence_length={length} is longer than model.max_positions={max_positions}")
