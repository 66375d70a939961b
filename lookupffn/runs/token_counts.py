"""token_counts.json: how often each token occurs in a run's training text, the bar for any text it is scored on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lookupffn.errors import UserError
from lookupffn.runs.names import TOKEN_COUNTS
from lookupffn.storage import read_json, to_json, write_atomically


def write_token_counts(folder: Path, counts: Sequence[int]) -> None:
    """Writes the counts, by token id, into a run's folder.

    Raises:
        UserError: the disk is full or cannot be written.
    """
    try:
        write_atomically(folder / TOKEN_COUNTS, to_json({"counts": list(counts)}))
    except OSError as error:
        raise UserError(f"cannot write {folder / TOKEN_COUNTS}: {error.strerror or error}") from error


def read_token_counts(folder: Path, vocab_size: int) -> np.ndarray | None:
    """int64 [V]; None where a run has none, as earlier versions left it.

    Raises:
        UserError: the file is damaged, or is for a vocabulary of another size.
    """
    path = folder / TOKEN_COUNTS
    if not path.exists():
        return None
    counts = read_json(path).get("counts")
    whole = isinstance(counts, list) and all(type(count) is int and 0 <= count < 2**62 for count in counts)
    if not whole or len(counts) != vocab_size:
        raise UserError(f"damaged file {path}: it does not hold the counts of {vocab_size} tokens")
    return np.array(counts, dtype=np.int64)
