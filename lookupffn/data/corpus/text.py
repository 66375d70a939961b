"""The user's own text: .txt, .jsonl, .jsonl.gz and .parquet files, streamed.

In a .txt file paragraphs end at blank lines, and a document is a run of paragraphs of about ``TXT_DOCUMENT``
characters; in the other formats a document is a record.
"""

import codecs
import glob
import gzip
import io
import json
import logging
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from lookupffn import storage
from lookupffn.config.data import TextSettings
from lookupffn.data.corpus.base import Corpus, in_validation
from lookupffn.errors import UserError

logger = logging.getLogger(__name__)

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".parquet")
TXT_DOCUMENT = 4096
_LONGEST_READ = 2**20  # characters of a line read at once: a file need not have line ends
_PARQUET_ROWS = 256
_HANDLER = "lookupffn-count"
_NAMED_FILES = 10  # in a report


class _Replacements:
    """Counts what ``errors="replace"`` would replace in silence: invalid bytes, and halves of surrogate pairs."""

    count = 0

    def __call__(self, error: UnicodeError) -> tuple[str | bytes, int]:
        if isinstance(error, UnicodeDecodeError):
            self.count += 1
            return "\ufffd", error.end
        halves = error.end - error.start
        self.count += halves
        return "\ufffd".encode() * halves, error.end  # bytes: the encoder takes no text beyond ASCII


_replacements = _Replacements()
codecs.register_error(_HANDLER, _replacements)


def suffix_of(path: Path) -> str | None:
    """Which of ``SUFFIXES`` a file name ends in."""
    return next(
        (suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if path.name.lower().endswith(suffix)), None
    )


def find_files(patterns: object, option: str) -> list[Path]:
    """The files that a path, a glob or a list of them names, sorted, each once.

    Raises:
        UserError: nothing matches, a match is a folder, or its suffix is unknown; the message names ``option``.
    """
    if not isinstance(patterns, str | os.PathLike | Iterable):
        raise UserError(f"{option} is {patterns!r}: it must be a path, a glob or a list of them")
    given = [patterns] if isinstance(patterns, str | os.PathLike) else list(patterns)
    if not given:
        raise UserError(f"{option} is an empty list: name files or globs of {', '.join(SUFFIXES)}")
    found: dict[Path, None] = {}
    for pattern in given:
        expanded = os.path.expanduser(str(pattern))
        matches = [expanded] if os.path.exists(expanded) else sorted(glob.glob(expanded, recursive=True))
        if not matches:
            kind = "no file matches" if glob.has_magic(expanded) else "no such file:"
            raise UserError(f"{option}: {kind} {pattern} (looked from {Path.cwd()}): check the path")
        for match in matches:
            path = Path(match)
            if path.is_dir():
                raise UserError(f"{option}: {path} is a folder: name its files, for example {path / '*.jsonl'}")
            if suffix_of(path) is None:
                raise UserError(f"{option}: cannot read {path}: the suffix must be one of {', '.join(SUFFIXES)}")
            found.setdefault(path)
    return list(found)


def _lines(path: Path) -> Iterator[str]:
    """Lines (or pieces of very long ones) of a plain or gzip-compressed file; invalid UTF-8 replaced and counted."""
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opener(path, "rb") as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", errors=_HANDLER) as file:
            while line := file.readline(_LONGEST_READ):
                yield line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is damaged or incomplete gzip ({error}): fetch it again") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _txt_documents(path: Path) -> Iterator[str]:
    parts: list[str] = []
    size = 0
    for line in _lines(path):
        blank = not line.strip()
        if size >= TXT_DOCUMENT and (blank or size >= 8 * TXT_DOCUMENT):
            yield "".join(parts).strip()
            parts, size = [], 0
        parts.append(line)
        size += len(line)
    if last := "".join(parts).strip():
        yield last


def _jsonl_documents(path: Path, field: str) -> Iterator[str]:
    number, pending = 1, ""
    for piece in _lines(path):
        if not piece.endswith("\n") and len(piece) == _LONGEST_READ:
            pending += piece
            continue
        line, pending = pending + piece, ""
        if line.strip():
            yield _record_text(line, field, path, number)
        number += 1
    if pending.strip():
        yield _record_text(pending, field, path, number)


def _record_text(line: str, field: str, path: Path, number: int) -> str:
    where = f"{path}, line {number}"
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        if isinstance(error, json.JSONDecodeError):
            reason = f"{error.msg.removesuffix(' at')} at column {error.colno}"
        raise UserError(f"{where}: not valid JSON ({reason}): correct or remove the line") from error
    if not isinstance(record, dict) or not isinstance(record.get(field), str):
        keys = ", ".join(map(repr, record)) if isinstance(record, dict) else f"a JSON {type(record).__name__}"
        raise UserError(
            f"{where}: no text under {field!r} (found {keys[:200]}): set data.text_field to the field of the text"
        )
    # an escape can name half of a surrogate pair, which no UTF-8 can hold
    return record[field].encode("utf-8", _HANDLER).decode("utf-8") if "\\u" in line else record[field]


def _parquet_documents(path: Path, field: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            kind = schema.field(field).type if field in schema.names else None
            if kind is None or not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
                raise UserError(
                    f"{path}: no column of strings {field!r} (columns: {', '.join(schema.names)}): set data.text_field"
                )
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=[field]):
                column = batch.column(0)
                try:
                    texts = column.to_pylist()
                except UnicodeDecodeError:
                    raw = column.cast(pyarrow.large_binary()).to_pylist()
                    texts = [None if value is None else value.decode("utf-8", _HANDLER) for value in raw]
                yield from (text for text in texts if text is not None)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"cannot read {path} as parquet: {' '.join(str(error).split())[:200]}") from error


def read_documents(path: Path, field: str) -> Iterator[str]:
    """The non-empty documents of one file.

    Raises:
        UserError: with file, and line where there is one.
    """
    suffix = suffix_of(path)
    if suffix == ".txt":
        documents = _txt_documents(path)
    elif suffix == ".parquet":
        documents = _parquet_documents(path, field)
    else:
        documents = _jsonl_documents(path, field)
    return (document for document in documents if document and not document.isspace())


class TextCorpus(Corpus):
    """Local files.

    Options (configs/data/text.yaml): ``train_files`` and ``validation_files``, each a path, a glob or a list of them;
    ``text_field``, the field or column of the text; ``validation_fraction``, the share of the training documents,
    chosen by a hash of their text, that is held out when no ``validation_files`` are given.
    """

    name = "text"

    def __init__(self, settings: TextSettings, cache_dir: Path, num_processes: int | None = None) -> None:
        """
        Raises:
            UserError: no files named, none found, or their kind is unknown.
        """
        self.field = settings.text_field or "text"
        self.fraction = settings.validation_fraction
        self._cache_dir = cache_dir
        self._digests: dict[str, list[str]] = {}
        self._replaced: dict[Path, int] = {}  # invalid UTF-8 sequences of the files read to their end
        self.files: dict[str, list[Path]] = {}
        for split in ("train", "validation"):
            patterns = getattr(settings, f"{split}_files")
            if patterns is not None:
                self.files[split] = find_files(patterns, f"data.{split}_files")
        if not self.files:
            raise UserError(
                "data=text needs data.train_files=<path or glob> (and data.validation_files if you have them)"
            )
        # without files of its own the validation split is a share of the training documents
        self.held_out = "validation" not in self.files and self.fraction > 0
        shared = set(map(os.path.realpath, self.files.get("train", ())))
        shared &= set(map(os.path.realpath, self.files.get("validation", ())))
        if shared:
            raise UserError(
                f"{min(shared)} is in data.train_files and in data.validation_files: take it out of one of them"
            )

    def has(self, split: str) -> bool:
        return split in self.files or (split == "validation" and self.held_out)

    def fingerprint(self, split: str) -> str:
        source = split if split in self.files else "train"
        if source not in self._digests:
            self._digests[source] = content_digests(self.files[source], self._cache_dir)
        share = [split, self.fraction] if self.held_out else None
        return storage.fingerprint(
            corpus=self.name, version=1, files=self._digests[source], field=self.field, share=share
        )

    def documents(self, split: str) -> Iterator[str]:
        for path in self.files[split if split in self.files else "train"]:
            before = _replacements.count
            for document in read_documents(path, self.field):
                if not self.held_out or in_validation(document, self.fraction) == (split == "validation"):
                    yield document
            self._replaced[path] = _replacements.count - before

    def characters(self, split: str) -> int | None:
        paths = self.files[split if split in self.files else "train"]
        if any(suffix_of(path) in (".jsonl.gz", ".parquet") for path in paths):
            return None  # compressed
        total = sum(path.stat().st_size for path in paths)
        return round(total * (self.fraction if split not in self.files else 1))

    def report(self) -> None:
        """Say once, for all passes over the files, how much invalid UTF-8 was replaced and where."""
        found = [f"{path} ({count})" for path, count in self._replaced.items() if count]
        if found:
            more = f" and {len(found) - _NAMED_FILES} more files" if len(found) > _NAMED_FILES else ""
            logger.warning(
                "%d invalid UTF-8 sequences replaced by U+FFFD in %s%s",
                sum(self._replaced.values()), ", ".join(found[:_NAMED_FILES]), more,
            )  # fmt: skip
        self._replaced.clear()


def content_digests(paths: list[Path], cache_dir: Path) -> list[str]:
    """SHA-256 of each file with its suffix, remembered by (path, size, time of change) so that it is computed once."""
    memory = cache_dir / "file_digests.json"
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        known = None
    if not isinstance(known, dict):
        known = {}
    keys: list[str] = []
    new: dict[str, tuple[Path, int]] = {}
    path = None
    try:
        for path in paths:
            status = path.stat()
            keys.append(f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}")
            if not isinstance(known.get(keys[-1]), str):
                new[keys[-1]] = path, status.st_size
        with storage.digest_bar(sum(size for _, size in new.values())) as bar:
            for key, (path, _) in new.items():
                digest = storage.file_digest(path, bar.update)
                before = {value for name, value in known.items() if name.startswith(f"{path.resolve()}|")}
                if before and digest not in before:
                    logger.warning("%s has changed since it was last read: it is prepared anew", path)
                known[key] = digest
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if new:
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
            storage.write_atomically(memory, json.dumps(known, indent=0))
        except OSError as error:
            logger.debug("file digests not remembered: %s", error)
    return [f"{suffix_of(path)}:{known[key]}" for path, key in zip(paths, keys, strict=True)]
