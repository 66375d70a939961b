"""Files and folders that are whole or not there: atomic writes, digests, guarded reads, one line for a full disk."""

import errno
import hashlib
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from tqdm import tqdm

from lookupffn.errors import UserError

_BLOCK = 2**20
_SILENT_BYTES = 64 * 2**20
# torch's zip writer says nothing better when a write falls short, and Rust's writers put the number in the text
_ZIP_WRITER = re.compile(r"inline_container|PytorchStreamWriter|iostream error|unexpected pos")
_RUST_WRITER = re.compile(r"\(os error (\d+)\)")


def cache_root(configured: str | None = None) -> Path:
    """Where prepared text and kernels are kept: ``configured``, else $LOOKUPFFN_CACHE, else ~/.cache/lookupffn.

    Raises:
        RuntimeError: nothing is named and the user has no home folder.
    """
    return Path(configured or os.environ.get("LOOKUPFFN_CACHE") or Path.home() / ".cache" / "lookupffn").expanduser()


def fingerprint(**parts: object) -> str:
    """32 hex digits that change when any part (anything JSON can hold) changes."""
    canonical = json.dumps(parts, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def file_digest(path: Path, advance: Callable[[int], object] | None = None) -> str:
    """SHA-256 of a file's content; ``advance`` is called with the bytes of each block read."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            if advance is not None:
                advance(len(block))
    return digest.hexdigest()


def digest_bar(total: int) -> tqdm:
    """A progress bar for digests of ``total`` bytes, silent when they take no time to speak of."""
    return tqdm(total=total, desc="checking files", unit="B", unit_scale=True, disable=total <= _SILENT_BYTES)


def write_atomically(path: Path, text: str) -> None:
    """A file that is either the old one or the whole new one, after a power failure too."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def check_ordinary(path: Path) -> None:
    """Raises a UserError for a pipe, which may block, and a device, which may not end; a missing file passes."""
    if path.exists() and not path.is_file():
        raise UserError(f"cannot read {path}: it is not an ordinary file")


def read_text(path: Path, most: int = 2**26, *, damaged: bool = False) -> str:
    """Text of an ordinary file: never a pipe, which may block, nor a device, which may not end.

    Args:
        path: the file.
        most: bytes it may have.
        damaged: whether bytes that are not UTF-8 are replaced instead of refused.

    Raises:
        UserError: it is missing, unreadable, too large, something else than a file, or not text.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UserError(f"cannot read {path}: it is not an ordinary file")
            content = file.read(most + 1)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    if len(content) > most:
        raise UserError(f"cannot read {path}: it is larger than {most:,} bytes")
    try:
        return content.decode("utf-8", "replace" if damaged else "strict")
    except UnicodeDecodeError:
        raise UserError(f"damaged file {path}: not text") from None


def read_json(path: Path, most: int = 2**26) -> dict[str, Any]:
    """A JSON object from an ordinary file of at most ``most`` bytes.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    try:
        value = json.loads(read_text(path, most))
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"damaged file {path}: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(value, dict):
        raise UserError(f"damaged file {path}: not a JSON object")
    return value


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
        if Path(name).name != name:
            return name
        check_ordinary(folder / name)
        if file_digest(folder / name) != digest:
            return name
    return None
