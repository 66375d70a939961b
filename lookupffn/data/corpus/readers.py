"""Documents from files: the same records give the same documents in any format.

In a .txt file paragraphs end at blank lines, and a document is a run of paragraphs of about ``TXT_DOCUMENT``
characters. In the other formats a document is the text field of a record: a record without it, or with null, has none.
"""

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lookupffn.data.corpus.files import COMPRESSIONS, suffix_of
from lookupffn.errors import UserError

TXT_DOCUMENT = 4096
_LONGEST_READ = 2**20  # characters of a line read at once: a file need not have line ends
_PARQUET_ROWS = 256
_WITHOUT_FIELD = 1000  # records read in search of the text field before its name is taken for a mistake
_HEAD = 2**16  # bytes by which text is told from other data
_NOT_TEXT = re.compile("[\ufffd\\x00-\\x07\\x0e-\\x1a\\x1c-\\x1f\\x7f]")  # not UTF-8, or control characters
_BINARY = 0.3  # the fraction of these that makes data binary: text in an old 8-bit encoding of Europe has less
_HANDLER = "lookupffn-count"
# UTF-32's mark begins with UTF-16's
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"PK\3\4": "zip"}


class Replacements:
    """Counts what ``errors="replace"`` would replace in silence: invalid bytes, and halves of surrogate pairs."""

    count = 0

    def __call__(self, error: Any) -> tuple[str | bytes, int]:
        if isinstance(error, UnicodeDecodeError):
            self.count += 1
            return "\ufffd", error.end
        halves = error.end - error.start
        self.count += halves
        return "\ufffd".encode() * halves, error.end  # bytes: the encoder takes no text beyond ASCII


replacements = Replacements()
codecs.register_error(_HANDLER, replacements)


def read_documents(path: Path, field: str) -> Iterator[str]:
    """The non-empty documents of one file.

    Args:
        path: its suffix says what it is.
        field: key or column of the text; "meta.text" is the key "meta.text", or else text inside meta.

    Raises:
        UserError: with file, and line where there is one.
    """
    kind = suffix_of(path)
    for packed in COMPRESSIONS:
        kind = kind.removesuffix(packed)
    if kind == ".txt":
        documents = _txt_documents(path)
    elif kind == ".parquet":
        documents = _parquet_documents(path, field)
    else:
        records = _jsonl_records(_lines(path), path) if kind == ".jsonl" else _json_records(path)
        documents = _texts(records, field)
    return (document for document in documents if document and not document.isspace())


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The bytes of a plain or compressed file."""
    try:
        if path.name.lower().endswith(".gz"):
            with gzip.open(path, "rb") as file:
                yield file
        elif path.name.lower().endswith(".zst"):
            import pyarrow

            with pyarrow.input_stream(str(path), compression="zstd") as stream, io.BufferedReader(stream) as file:
                yield file
        else:
            with open(path, "rb") as file:
                yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is damaged or incomplete gzip ({error}): fetch it again") from error
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())[:200]
        raise UserError(f"cannot read {path}: {reason}") from error


def _encoding(path: Path) -> str:
    """UTF-8, or the encoding whose mark the file begins with.

    Raises:
        UserError: what the file begins with is not text.
    """
    with _opened(path) as file:
        head = file.read(_HEAD)
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            raise UserError(f"{path} is {name} data, not text: give it the suffix of what it is, or unpack it")
    text = head.decode("utf-8", "replace")
    if len(_NOT_TEXT.findall(text)) > _BINARY * len(text):
        raise UserError(
            f"{path} is not text: it is binary data, in another encoding than UTF-8, or in UTF-16 without a byte order "
            "mark; save it as UTF-8"
        )
    return "utf-8"


def _lines(path: Path) -> Iterator[str]:
    """Lines (or pieces of very long ones), without byte order marks; what cannot be decoded is replaced and counted."""
    encoding = _encoding(path)
    with _opened(path) as raw, io.TextIOWrapper(raw, encoding=encoding, errors=_HANDLER) as file:
        while line := file.readline(_LONGEST_READ):
            yield line.removeprefix("\ufeff")  # joined files have one inside


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


def _jsonl_records(lines: Iterable[str], path: Path) -> Iterator[tuple[Any, str]]:
    """(record, where it stands) of each line that is not blank."""
    pending: list[str] = []
    number = 1
    for piece in lines:
        pending.append(piece)
        if not piece.endswith("\n") and len(piece) == _LONGEST_READ:
            continue
        if (line := "".join(pending)).strip():
            yield _parsed(line, f"{path}, line {number}")
        pending = []
        number += 1
    if (line := "".join(pending)).strip():
        yield _parsed(line, f"{path}, line {number}")


def _json_records(path: Path) -> Iterator[tuple[Any, str]]:
    """The records of a .json file, which is read whole: an array of them, one alone, or one a line."""
    text = "".join(_lines(path))
    try:
        content = json.loads(text) if text.strip() else []
    except json.JSONDecodeError as error:
        if not error.msg.startswith("Extra data"):
            raise _invalid(error, f"{path}, line {error.lineno}") from error
        yield from _jsonl_records(io.StringIO(text), path)
    except (ValueError, RecursionError) as error:
        raise _invalid(error, str(path)) from error
    else:
        records = content if isinstance(content, list) else [content]
        for number, record in enumerate(records, 1):
            yield record, f"{path}, record {number}"


def _parsed(line: str, where: str) -> tuple[Any, str]:
    try:
        return json.loads(line), where
    except (ValueError, RecursionError) as error:
        raise _invalid(error, where) from error


def _invalid(error: Exception, where: str) -> UserError:
    reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
    if isinstance(error, json.JSONDecodeError):
        reason = f"{error.msg.removesuffix(' at')} at column {error.colno}"
    return UserError(f"{where}: not valid JSON ({reason}): correct or remove it")


_ABSENT = object()


def _value(record: dict, field: str) -> Any:
    """What stands under a key, or along a path of keys joined by points."""
    if field in record:
        return record[field]
    head, point, rest = field.partition(".")
    inner = record.get(head) if point else None
    return _value(inner, rest) if isinstance(inner, dict) else _ABSENT


def _texts(records: Iterator[tuple[Any, str]], field: str) -> Iterator[str]:
    mistaken: UserError | None = None  # of the first record without the field, until one has it
    missing = 0
    found = False
    for record, where in records:
        if not isinstance(record, dict):
            raise _no_text(where, field, f"a JSON {type(record).__name__}")
        value = _value(record, field)
        if value is _ABSENT:
            missing += 1
            mistaken = mistaken or _no_text(where, field, ", ".join(map(repr, record)))
            if not found and missing == _WITHOUT_FIELD:
                break
            continue
        found = True
        if value is None:
            continue
        if not isinstance(value, str):
            raise _no_text(where, field, f"{field!r} is a JSON {type(value).__name__}")
        # an escape can name half of a surrogate pair, which no UTF-8 can hold
        yield value if value.isascii() else value.encode("utf-8", _HANDLER).decode("utf-8")
    if mistaken and not found:
        raise mistaken


def _no_text(where: str, field: str, found: str) -> UserError:
    return UserError(
        f"{where}: no text under {field!r} (found {found[:200]}): set data.text_field to the field of the text"
    )


def _parquet_documents(path: Path, field: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.compute
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            column, inner, kind = _column(schema, field)
            if schema.names.count(column) > 1:
                raise UserError(f"{path}: {schema.names.count(column)} columns are called {column!r}: rename one")
            if kind is None:
                raise UserError(
                    f"{path}: no column of strings {field!r} (columns: {', '.join(schema.names)}): set data.text_field"
                )
            if pyarrow.types.is_null(kind):
                return
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=[column]):
                values = batch.column(batch.schema.get_field_index(column))
                if inner:
                    values = pyarrow.compute.struct_field(values, inner)
                if pyarrow.types.is_dictionary(values.type):
                    values = values.dictionary_decode()
                yield from _decoded(values)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"cannot read {path} as parquet: {' '.join(str(error).split())[:200]}") from error


def _column(schema: Any, field: str) -> tuple[str, list[str], Any]:
    """(column, path of fields inside it, type of the text there): null for all-null data, None where there is none."""
    from pyarrow import types

    def text_kind(kind: Any) -> Any:
        value = kind.value_type if types.is_dictionary(kind) else kind
        readable = (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
        return value if any(is_kind(value) for is_kind in readable) else None

    def inside(kind: Any, rest: str) -> tuple[list[str], Any]:
        if types.is_null(kind):
            return [], kind
        names = [kind.field(i).name for i in range(kind.num_fields)] if types.is_struct(kind) else []
        if rest in names:
            return [rest], text_kind(kind.field(names.index(rest)).type)
        head, point, tail = rest.partition(".")
        if not point or head not in names:
            return [], None
        path, found = inside(kind.field(names.index(head)).type, tail)
        return [head, *path], found

    if field in schema.names:
        return field, [], text_kind(schema.field(schema.names.index(field)).type)
    head, point, rest = field.partition(".")
    if not point or head not in schema.names:
        return field, [], None
    return head, *inside(schema.field(schema.names.index(head)).type, rest)


def _decoded(values: Any) -> Iterator[str]:
    import pyarrow

    try:
        texts = values.to_pylist()
    except UnicodeDecodeError:
        raw = values.cast(pyarrow.large_string()).cast(pyarrow.large_binary()).to_pylist()
        texts = [None if value is None else value.decode("utf-8", _HANDLER) for value in raw]
    return (text for text in texts if text is not None)
