"""The cache of prepared text and tokenizers.

An entry is a folder named by the fingerprint of its sources. It is built beside its place under a lock and renamed into
it, with a manifest of sizes and digests by which damage is noticed on the next use. The lock is the operating system's
(``filelock``), so the lock of a process that died holds nobody up.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from lookupffn import storage
from lookupffn.errors import UserError

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
# Digests of entries larger than this are not recomputed at every start; their sizes still are compared.
FULL_CHECK_BYTES = 512 * 2**20
_WAIT_S = 5.0

Kept = tuple[type[BaseException], ...]


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
                if storage.file_digest(entry / name) != record["sha256"]:
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
    with storage.digest_bar(sum(sizes)) as bar:
        digests = [storage.file_digest(path, bar.update) for path in files]
    manifest = {
        path.name: {"size": size, "sha256": digest} for path, size, digest in zip(files, sizes, digests, strict=True)
    }
    storage.write_atomically(entry / MANIFEST, json.dumps(manifest, indent=1))


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
