"""Documents to token sequences: encoded in order, joined with separators, cut to length.

A split is one flat stream of ``<s> document </s> <s> document </s> ...`` on disk, written once for a corpus and a
tokenizer; the sequence length only decides where it is cut, so that every length shares one file.
Dimensions: N sequences, L tokens a sequence, V vocabulary.
"""

import json
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from lookupffn import storage
from lookupffn.data.parallel import ordered_map
from lookupffn.errors import UserError

logger = logging.getLogger(__name__)

VERSION = 1
TOKENS, COUNTS, INDEX = "tokens.bin", "counts.npy", "index.json"
_BATCH_CHARACTERS = 500_000
_PIECE_CHARACTERS = 100_000  # the encoding of a text takes a hundred times its size: long documents go in pieces
_JOURNAL_CHARACTERS = 50_000_000
_COUNT_BLOCK = 2**24
_ROW_BLOCK = 2**14
_TYPES = ("uint16", "uint32")


class PackedTokens:
    """N sequences of L tokens, memory-mapped.

    ``tokens`` [N, L] is indexed like a read-only array of uint16, or uint32 for a vocabulary above 65,536. Pickles as a
    path and the rows that are left out.
    """

    def __init__(self, entry: Path, sequence_length: int, rows: np.ndarray | None = None) -> None:
        """
        Args:
            rows: which of the sequences count, ascending; None for all.

        Raises:
            UserError: the entry holds less than one sequence, or its index is damaged.
        """
        self.entry = Path(entry)
        self.sequence_length = int(sequence_length)
        self.rows = rows
        index = _read_index(self.entry / INDEX)
        self.vocab_size = int(index["vocab_size"])
        count = index["tokens"] // self.sequence_length
        if count == 0:
            raise UserError(
                f"the {index['what']} has {index['tokens']} tokens, fewer than one sequence of {self.sequence_length}: "
                "give more text or a smaller data.sequence_length"
            )
        try:
            tokens = np.memmap(self.entry / TOKENS, dtype=index["dtype"], mode="r", shape=(count, self.sequence_length))
        except (OSError, ValueError, OverflowError) as error:
            raise UserError(f"damaged cache entry {self.entry}: {TOKENS} cannot be read ({error}); remove it") from None
        self.tokens = tokens if rows is None else _Rows(tokens, rows)

    def __len__(self) -> int:
        return len(self.tokens)

    def __reduce__(self) -> tuple:
        return PackedTokens, (self.entry, self.sequence_length, self.rows)

    def with_ordinary(self, special: np.ndarray, least: int) -> "PackedTokens":
        """The sequences that have at least ``least`` tokens that are not special; ``special`` is boolean, [V]."""
        ordinary = [
            np.count_nonzero(~special[self.tokens[start : start + _ROW_BLOCK]], axis=1)
            for start in range(0, len(self), _ROW_BLOCK)
        ]
        rows = np.flatnonzero(np.concatenate(ordinary) >= least)
        return self if len(rows) == len(self) else PackedTokens(self.entry, self.sequence_length, rows)


class _Rows:
    """Some rows of a memory-mapped array [N, L], read when they are asked for."""

    def __init__(self, array: np.ndarray, rows: np.ndarray) -> None:
        self._array, self._rows = array, rows
        self.shape, self.dtype = (len(rows), array.shape[1]), array.dtype

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        return self._array[self._rows[index]]


def _read_index(path: Path) -> dict:
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        whole = type(index["tokens"]) is int and index["tokens"] >= 0 and type(index["vocab_size"]) is int
        if whole and index["dtype"] in _TYPES and "what" in index:
            return index
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    raise UserError(f"damaged cache entry {path.parent}: {path.name} is not what was written; remove it")


def _pieces(document: str) -> Iterator[str]:
    """A document in pieces that end before a space, where byte-level BPE cuts anyway."""
    start = 0
    while len(document) - start > _PIECE_CHARACTERS:
        end = document.rfind(" ", start + 1, start + _PIECE_CHARACTERS)
        if end <= start:
            end = start + _PIECE_CHARACTERS
        yield document[start:end]
        start = end
    yield document[start:]


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


_worker: dict = {}


def _start_worker(backend_json: str, begin: int, end: int, dtype: str) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    backend = Tokenizer.from_str(backend_json)
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True  # "<mask>" in someone's text is text
    _worker.update(backend=backend, begin=begin, end=end, dtype=np.dtype(dtype))


def _encode(batch: list[str]) -> tuple[np.ndarray, int, int]:
    """(tokens [n] of a batch of documents with their separators, documents, characters)."""
    owners: list[int] = []
    pieces: list[str] = []
    for number, document in enumerate(batch):
        for piece in _pieces(document):
            owners.append(number)
            pieces.append(piece)
    encodings = _worker["backend"].encode_batch_fast(pieces, add_special_tokens=False)
    ids: list[int] = []
    last = None
    for owner, encoding in zip(owners, encodings, strict=True):
        if owner != last:
            if last is not None:
                ids.append(_worker["end"])
            ids.append(_worker["begin"])
            last = owner
        ids.extend(encoding.ids)
    ids.append(_worker["end"])
    return np.array(ids, dtype=_worker["dtype"]), len(batch), sum(map(len, batch))


def _count(path: Path, dtype: str, vocab_size: int) -> np.ndarray:
    """How often each token occurs, [V], block by block."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    tokens = np.memmap(path, dtype=dtype, mode="r")
    for start in range(0, len(tokens), _COUNT_BLOCK):
        counts += np.bincount(tokens[start : start + _COUNT_BLOCK], minlength=vocab_size)
    return counts


def _read_journal(path: Path) -> dict[str, int]:
    """How far an interrupted packing has come; nowhere, where that cannot be told."""
    done = {"documents": 0, "tokens": 0, "characters": 0}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found.keys() == done.keys() and all(type(value) is int and value >= 0 for value in found.values()):
            return found
    except FileNotFoundError:
        return done
    except (OSError, ValueError, AttributeError, RecursionError):
        pass
    logger.warning("%s cannot be read; packing from the start", path)
    return done


def write_tokens(
    folder: Path,
    documents: Iterable[str],
    backend: Tokenizer,
    *,
    begin: int,
    end: int,
    vocab_size: int,
    what: str,
    processes: int,
    characters: int | None = None,
) -> None:
    """Encode documents into ``folder``: tokens.bin, counts.npy [V] and index.json; goes on where a journal says.

    The result does not depend on ``processes``.

    Args:
        documents: all documents of the split, in their order.
        begin, end: ids put before and after each document.
        what: name of the split for messages.
        characters: expected total, for the progress bar.

    Raises:
        UserError: there are no documents.
    """
    dtype = "uint16" if vocab_size <= 2**16 else "uint32"
    journal = folder / "journal.json"
    done = _read_journal(journal)
    stream = iter(documents)
    for _ in range(done["documents"]):
        next(stream, None)
    path = folder / TOKENS
    path.touch()
    unsaved = 0
    with open(path, "r+b") as file, tqdm(total=characters, desc=f"packing {what}", unit="char", unit_scale=True) as bar:
        file.truncate(done["tokens"] * np.dtype(dtype).itemsize)
        file.seek(0, 2)
        bar.update(done["characters"])
        arguments = (backend.to_str(), begin, end, dtype)
        work = ordered_map(
            _encode, _batches(stream), processes=processes, initializer=_start_worker, arguments=arguments
        )  # fmt: skip
        with closing(work) as encoded:  # an error here must end the workers now, not when its traceback goes
            for tokens, count, size in encoded:
                file.write(memoryview(tokens).cast("B"))
                done["documents"] += count
                done["tokens"] += len(tokens)
                done["characters"] += size
                unsaved += size
                bar.update(size)
                if unsaved >= _JOURNAL_CHARACTERS:
                    file.flush()
                    storage.write_atomically(journal, json.dumps(done))
                    unsaved = 0
    if not done["documents"]:
        raise UserError(f"the {what} is empty: it holds no text; give more documents")
    with open(folder / COUNTS, "wb") as file:
        np.save(file, _count(path, dtype, vocab_size))
    index = {"what": what, "dtype": dtype, "vocab_size": vocab_size, **done}
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
    journal.unlink(missing_ok=True)
