"""What a tokenizer asks of a model: rows of the embedding, and whether padding has an id of its own."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from lookupffn.errors import UserError

# every token that stands in text or is predicted
_ROLES = ("bos_token_id", "eos_token_id", "unk_token_id", "sep_token_id", "cls_token_id", "mask_token_id")
# as many ids may be missing as there are entries, and some more
_SPARE = 1024


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Rows of the embedding, so that every id has one: more than the entries where ids have gaps.

    Raises:
        UserError: the ids are so sparse that most rows would be unused.
    """
    entries = len(tokenizer)
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= 2 * entries + _SPARE:
        raise UserError(
            f"the tokenizer has {entries} entries but an id of {largest}: the model would need a row for every id up "
            "to it; number the entries without large gaps"
        )
    return max(entries, largest + 1)


def unused_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids below ``vocabulary_size`` that belong to no entry, ascending."""
    used = set(tokenizer.get_vocab().values())
    return [number for number in range(vocabulary_size(tokenizer)) if number not in used]


def own_pad_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id of padding; None where there is none, or where it is also the id of a token that stands in text."""
    pad = tokenizer.pad_token_id
    shared = pad in [getattr(tokenizer, role, None) for role in _ROLES]
    return None if pad is None or shared else pad


def check_tokenizer_length(tokenizer: PreTrainedTokenizerBase, where: str | Path) -> None:
    """Refuses a model_max_length that is no number, which transformers accepts and fails at when a text is cut.

    Raises:
        UserError: naming ``where`` the tokenizer was found.
    """
    length = tokenizer.model_max_length
    if isinstance(length, bool) or not isinstance(length, int | float) or not length >= 1:
        raise UserError(f"{where}: model_max_length of tokenizer_config.json must be a number, not {length!r}")
