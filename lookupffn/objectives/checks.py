"""What can be refused of model and data before either is there, in one line each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from lookupffn.config.data import data_settings
from lookupffn.config.sections import SMALLEST_VOCABULARY
from lookupffn.errors import UserError
from lookupffn.models import build_model_config

_FIELD = re.compile(r"[Ff]ield '(\w+)'")


class _PlaceholderTokenizer:
    """What a model's configuration asks of a tokenizer, before there is one."""

    bos_token_id, pad_token_id, eos_token_id = 0, 1, 2

    def get_vocab(self) -> dict[str, int]:
        return {}

    def __len__(self) -> int:
        return SMALLEST_VOCABULARY


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
