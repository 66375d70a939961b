"""Rows of text and a label from .tsv, .csv, .jsonl and .parquet files."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lookupffn.errors import UserError
from lookupffn.storage import check_ordinary

logger = logging.getLogger(__name__)

SUFFIXES = (".tsv", ".csv", ".jsonl", ".parquet")
TEXT_NAMES = (("sentence1", "sentence2"), ("sentence",), ("text",))
LABEL_NAMES = ("label", "score")


class Row(NamedTuple):
    """One example as a file has it.

    Attributes:
        texts: one or two.
        label: as written: text, a whole number or a number.
        where: file and line, for messages.
    """

    texts: tuple[str, ...]
    label: Any
    where: str


def read_tsv(
    path: Path,
    columns: Sequence[str] | Sequence[int],
    label: str | int,
    *,
    header: bool,
    incomplete: str = "refuse",
) -> list[Row]:
    """Rows of a tab-separated file in which quotation marks are ordinary characters.

    Args:
        path: UTF-8, with or without a byte order mark; lines end in LF or CRLF.
        columns: of the texts, by name (with a header) or number.
        label: column of the label, likewise.
        header: whether the first line names the columns.
        incomplete: "refuse" rows with too few columns, or "leave out" and count them.

    Raises:
        UserError: a column that is not there, a row with too few columns, or a file that cannot be read.
    """
    lines = _text(path).split("\n")  # str.splitlines would also split at U+2028 and the like
    lines = [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
    names = lines[0].split("\t") if header and lines else []
    wanted = [_position(name, names, path) for name in (*columns, label)]
    rows, short = [], 0
    for number, line in enumerate(lines[1:] if header else lines, 2 if header else 1):
        fields = line.split("\t")
        if len(fields) <= max(wanted):
            if incomplete == "refuse":
                raise UserError(
                    f"{path}, line {number}: {len(fields)} columns where at least {max(wanted) + 1} are needed"
                )
            short += 1
            continue
        *texts, value = (fields[position] for position in wanted)
        rows.append(Row(tuple(texts), value, f"{path}, line {number}"))
    if short:
        logger.info("%s: %d rows without all columns left out, as everyone does with this file", path, short)
    return rows


def _position(name: str | int, names: Sequence[str], path: Path) -> int:
    if isinstance(name, int):
        return name
    if name not in names:
        raise UserError(f"{path} has no column {name!r} (columns: {', '.join(names)[:200]})")
    return names.index(name)


def _text(path: Path) -> str:
    check_ordinary(path)
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8") from None


def read_own(path: Path, columns: Sequence[str] | None, label: str | None) -> list[Row]:
    """Rows of a user's file.

    Args:
        path: .tsv and .csv have a header. In .tsv quotation marks are ordinary characters, in .csv they quote.
        columns: of the text, one or two; None for sentence1 and sentence2, else sentence, else text.
        label: column of the label; None for ``label`` or ``score``.

    Raises:
        UserError: an unknown suffix, a column that is not there, or a file that cannot be read.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"cannot read {path}: the suffix must be one of {', '.join(SUFFIXES)}")
    if not path.exists():
        raise UserError(f"no such file: {path} (looked from {Path.cwd()})")
    names = _column_names(path)
    if columns is None:
        columns = next((known for known in TEXT_NAMES if set(known) <= set(names)), None)
        if columns is None:
            raise UserError(
                f"{path} has no column of text by a known name (columns: {', '.join(names)[:200]}): say which with "
                "task.text_columns=[...]"
            )
    if label is None:
        label = next((known for known in LABEL_NAMES if known in names), LABEL_NAMES[0])
    for name in (*columns, label):
        if name not in names:
            raise UserError(f"{path} has no column {name!r} (columns: {', '.join(names)[:200]})")
    if path.suffix.lower() == ".tsv":
        return read_tsv(path, columns, label, header=True)
    rows = []
    for record, where in _records(path):
        texts = tuple(record.get(name) for name in columns)
        for name, text in zip(columns, texts, strict=True):
            if not isinstance(text, str):
                raise UserError(f"{where}: {name} is {text!r}, not text")
        rows.append(Row(texts, record.get(label), where))
    return rows


def _column_names(path: Path) -> list[str]:
    if path.suffix.lower() == ".parquet":
        return list(_parquet(path).schema_arrow.names)
    if path.suffix.lower() == ".jsonl":
        first = next(_records(path), None)
        return [] if first is None else list(first[0])
    first_line = _text(path).partition("\n")[0].removesuffix("\r")
    return first_line.split("\t") if path.suffix.lower() == ".tsv" else next(csv.reader([first_line]), [])


def _records(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """(column -> value, file and line) of a .csv, .jsonl or .parquet file."""
    if path.suffix.lower() == ".parquet":
        for batch in _parquet(path).iter_batches():
            for number, record in enumerate(batch.to_pylist(), 1):
                yield record, f"{path}, row {number}"
    elif path.suffix.lower() == ".csv":
        reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
        try:
            names = next(reader, [])
            for fields in reader:
                if not fields:
                    continue
                if len(fields) != len(names):
                    raise UserError(
                        f"{path}, line {reader.line_num}: {len(fields)} columns where the header has {len(names)}"
                    )
                yield dict(zip(names, fields, strict=True)), f"{path}, line {reader.line_num}"
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num}: {error}") from None
    else:
        for number, line in enumerate(_text(path).split("\n"), 1):
            if line.strip():
                yield _json_record(line, f"{path}, line {number}"), f"{path}, line {number}"


def _json_record(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({error}): correct or remove the line") from None
    if not isinstance(record, dict):
        raise UserError(f"{where}: a JSON {type(record).__name__} where an object is needed")
    return record


def _parquet(path: Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    check_ordinary(path)
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"cannot read {path} as parquet: {' '.join(str(error).split())[:200]}") from None
