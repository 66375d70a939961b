"""Files and folders that are whole or not there: atomic writes, digests, the cache, one line for a full disk.

An entry of the cache is a folder named by the fingerprint of its sources. It is built beside its place under a
lock and renamed into it, with a manifest of sizes and digests by which damage is noticed on the next use. The lock
is the operating system's (``filelock``), so the lock of a process that died holds nobody up.
"""

import errno
import hashlib
import json
import logging
import math
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from tqdm import tqdm

from lookupffn.errors import UserError

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
# Digests of entries larger than this are not recomputed at every start; their sizes still are compared.
FULL_CHECK_BYTES = 512 * 2**20
_WAIT_S = 5.0
_BLOCK = 2**20
_SILENT_BYTES = 64 * 2**20

Kept = tuple[type[BaseException], ...]


def cache_root(configured: str | None) -> Path:
    """Where prepared corpora are kept: ``configured``, else $LOOKUPFFN_CACHE, else ~/.cache/lookupffn."""
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


def read_manifest(entry: Path) -> dict[str, dict]:
    """What a finished entry holds: file name -> {"size": bytes, "sha256": hex}."""
    return json.loads((entry / MANIFEST).read_text(encoding="utf-8"))


def damage(entry: Path) -> str | None:
    """What is wrong with a finished entry, or None when it is whole."""
    try:
        manifest = read_manifest(entry)
        for name, record in manifest.items():
            path = entry / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != record["size"]:
                return f"{name} has {path.stat().st_size} bytes where {record['size']} were written"
        if sum(record["size"] for record in manifest.values()) <= FULL_CHECK_BYTES:
            for name, record in manifest.items():
                if file_digest(entry / name) != record["sha256"]:
                    return f"{name} is not what was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its manifest cannot be read ({error})"
    return None


def stands(entry: Path) -> bool:
    """Whether an entry is there and whole."""
    return entry.is_dir() and damage(entry) is None


def _write_manifest(entry: Path) -> None:
    files = sorted(path for path in entry.iterdir() if path.is_file())
    sizes = [path.stat().st_size for path in files]
    with digest_bar(sum(sizes)) as bar:
        digests = [file_digest(path, bar.update) for path in files]
    manifest = {
        path.name: {"size": size, "sha256": digest} for path, size, digest in zip(files, sizes, digests, strict=True)
    }
    write_atomically(entry / MANIFEST, json.dumps(manifest, indent=1))


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file ``path``; says so once when another process has it."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("another process is preparing %s; waiting for it", what)
        while True:
            try:
                lock.acquire(timeout=_WAIT_S)
                break
            except Timeout:
                logger.debug("still waiting for %s", what)
    try:
        yield
    finally:
        lock.release()


def _restore(work: Path, before: Mapping[str, bytes | int] | None) -> None:
    """Put an unfinished entry back to how this run found it: gone, or with its earlier parts alone."""
    if before is None:
        shutil.rmtree(work, ignore_errors=True)
        return
    for path in work.iterdir():
        if path.name not in before:
            path.unlink()
    for name, content in before.items():
        if isinstance(content, bytes):
            (work / name).write_bytes(content)
        else:
            os.truncate(work / name, content)


def _snapshot(work: Path) -> dict[str, bytes | int]:
    """State files (small, rewritten) by content, data files (append-only) by length."""
    return {
        path.name: path.read_bytes() if path.suffix == ".json" else path.stat().st_size
        for path in work.iterdir()
        if path.is_file()
    }


def ensure_entry(entry: Path, build: Callable[[Path], None], *, what: str, kept_after: Kept = ()) -> bool:
    """Make sure that ``entry`` stands whole, building it when it does not.

    Args:
        entry: folder inside the cache, named by a fingerprint of everything that decides its content.
        build: fills an (empty, or when resumable perhaps partly filled) folder with files.
        what: what is being prepared, for messages ("the train split of docstrings").
        kept_after: what may interrupt a build that can go on: the unfinished folder is then kept, as it is when the
            process is killed, and handed to ``build`` again next time.

    Returns:
        True when it was built now, False when it stood already.

    Raises:
        UserError: the disk is full or the cache folder cannot be written; the cache is left as it was.
    """
    if stands(entry):
        return False
    work = entry.with_name(f"{entry.name}.partial")
    before: dict[str, bytes | int] | None = None
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with locked(entry.with_name(f"{entry.name}.lock"), what):
            if entry.is_dir():
                problem = damage(entry)
                if problem is None:
                    return False
                logger.warning("the cached copy of %s is damaged (%s: %s); preparing it again", what, entry, problem)
                shutil.rmtree(entry)
            if work.is_dir() and not kept_after:
                shutil.rmtree(work)  # left by a process that died: the lock is ours now
            if work.is_dir():
                before = _snapshot(work)
                logger.info("going on with the interrupted preparation of %s", what)
            else:
                work.mkdir()
            try:
                build(work)
                _write_manifest(work)
                os.rename(work, entry)
            except BaseException as error:
                if not isinstance(error, kept_after):
                    _restore(work, before)
                elif not any(work.iterdir()):
                    work.rmdir()
                raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"cannot write {what} in {entry.parent}: {reason}; the cache is left as it was: free some space or choose "
            "another folder with cache_dir=..."
        ) from error
    return True


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
