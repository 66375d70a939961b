"""The lock of a run folder: only one process trains in it.

flock ends with its owner, so a killed run leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from lookupffn.errors import UserError
from lookupffn.runs.names import LOCK

_held: set[int] = set()

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lock:
    """A folder that is held.

    Attributes:
        path: the folder.
        descriptor: of the open lock file; None where the file system has no locks.
        created: the folders that were made for it, outermost first.
    """

    path: Path
    descriptor: int | None
    created: tuple[Path, ...]


def lock(path: Path) -> Lock | None:
    """Locks a folder, making it if need be; None where it is taken.

    Raises:
        UserError: the folder cannot be written.
    """
    created = tuple(folder for folder in (*reversed(path.parents), path) if not folder.exists())
    try:
        path.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return None
            except OSError as error:
                os.close(descriptor)
                logger.warning("%s: no file locks here (%s); do not start a second run in it", path, error.strerror)
                return Lock(path, None, created)
            # the run before may have removed the file between our opening and locking it
            current = os.stat(path / LOCK, follow_symlinks=False) if (path / LOCK).exists() else None
            if current is not None and current.st_ino == os.fstat(descriptor).st_ino:
                _held.add(descriptor)
                return Lock(path, descriptor, created)
            os.close(descriptor)
    except OSError as error:
        _remove_created(created)
        raise UserError(f"cannot write in {path}: {error.strerror}; give another output_dir") from None


def unlock(lock: Lock) -> None:
    """Releases a folder; the folders made for it are removed again where they are still empty."""
    # removed while it is still held: whoever opened the old file notices (see _lock)
    (lock.path / LOCK).unlink(missing_ok=True)
    _remove_created(lock.created)
    if lock.descriptor in _held:
        _held.discard(lock.descriptor)
        os.close(lock.descriptor)


def _remove_created(created: tuple[Path, ...]) -> None:
    for folder in reversed(created):
        with contextlib.suppress(OSError):  # something is in it
            folder.rmdir()


def _close_inherited() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


# a worker that outlives a killed run must not keep its lock
os.register_at_fork(after_in_child=_close_inherited)


# a worker that outlives a killed run must not keep its lock
os.register_at_fork(after_in_child=_close_inherited)
