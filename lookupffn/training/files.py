"""Files of a run that are whole or not there, flushed to the disk, and one line for a disk that does not take them."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from lookupffn.data.cache import file_digest
from lookupffn.errors import UserError

# torch's zip writer says nothing better when a write falls short, and Rust's writers put the number in the text
_ZIP_WRITER = re.compile(r"inline_container|PytorchStreamWriter|iostream error|unexpected pos")
_RUST_WRITER = re.compile(r"\(os error (\d+)\)")


def finite(values: Any) -> Any:
    """Plain values with null for every NaN and infinity, which JSON does not have."""
    if isinstance(values, Mapping):
        return {key: finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def to_json(values: Mapping[str, Any], indent: int | None = None) -> str:
    """A JSON document that every parser reads, ended by a newline."""
    return json.dumps(finite(values), allow_nan=False, indent=indent) + "\n"


@contextmanager
def whole_folder(final: Path, what: str, *, kept: str) -> Iterator[Path]:
    """A folder to write in that gets its name when all of it is on the disk, and is gone after any failure.

    Args:
        final: its place; what stands there is replaced.
        what: what is being written, for the message.
        kept: what the user still has, for the message.

    Raises:
        UserError: the disk is full or cannot be written.
    """
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        replace_folder(partial, final)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        reason = disk_trouble(error)
        if reason is None:
            raise
        raise UserError(
            f"cannot write {what} {final}: {reason}; the disk is full or not writable. {kept}: "
            "free some space and repeat the command"
        ) from error


def disk_trouble(error: BaseException) -> str | None:
    """Why a write failed, where it was the disk that refused; None for any other error."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    text = " ".join(str(error).split())
    if match := _RUST_WRITER.search(text):
        return os.strerror(int(match[1]))
    if isinstance(error, SafetensorError):
        return text
    # the write's own error is lost to torch
    return os.strerror(errno.ENOSPC) if isinstance(error, RuntimeError) and _ZIP_WRITER.search(text) else None


def replace_folder(partial: Path, final: Path) -> None:
    """Flushes a finished folder to the disk and gives it its name."""
    for path in [*partial.iterdir(), partial]:
        _sync(path)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)
    _sync(final.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder, by name."""
    return {path.name: file_digest(path) for path in sorted(folder.iterdir()) if path.is_file()}


def altered(folder: Path, expected: Mapping[str, str]) -> str | None:
    """The first file of ``digests`` that is no longer what was written; None where all are.

    Raises:
        OSError: a file is missing or unreadable.
    """
    for name, digest in expected.items():
        if Path(name).name != name or file_digest(folder / name) != digest:
            return name
    return None
