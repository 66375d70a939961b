"""Opening a run folder: whether it is new, unfinished or finished, whether this run may go on in it, and its lock.

Only one process trains in a folder. flock ends with its owner, so a killed run leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lookupffn.config.sections import changeable_settings
from lookupffn.errors import UserError
from lookupffn.runs.checkpoint import newest_checkpoint
from lookupffn.runs.names import (
    CHECKPOINTS,
    CONFIG,
    LOCK,
    METRICS,
    MODEL,
    NOT_IN_NAME,
    SUMMARY,
    TOKEN_COUNTS,
    default_name,
    member_name,
)
from lookupffn.runs.records import flatten, read_config
from lookupffn.storage import write_atomically

# what may change when a run goes on; a longer budget stretches the rest of the schedule
MAY_CHANGE = (*NOT_IN_NAME, *changeable_settings())
# files that may lie elsewhere by now: fingerprints in the checkpoints say whether they are the same
MAY_MOVE = ("data.train_files", "data.validation_files", "tokenizer.path")
_held: set[int] = set()  # descriptors of locks

logger = logging.getLogger(__name__)


class RunFolder:
    """A folder this process holds the lock of.

    Attributes:
        path: the folder.
        fresh: whether this process began the run.
    """

    def __init__(self, path: Path, held: Lock, *, fresh: bool) -> None:
        """
        Args:
            path: the folder.
            held: its lock.
            fresh: see the class.
        """
        self.path = path
        self._lock = held
        self.fresh = fresh

    def write_config(self, config: dict[str, Any]) -> None:
        """Writes config.yaml: for a new run when its folder is opened, for one that resumes when nothing refuses it."""
        write_atomically(self.path / CONFIG, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))

    def release(self) -> None:
        """Releases the folder, and removes it where a run was refused before it wrote anything."""
        if self.fresh and {entry.name for entry in self.path.iterdir()} <= {CONFIG, TOKEN_COUNTS, LOCK}:
            for name in (TOKEN_COUNTS, CONFIG):
                (self.path / name).unlink(missing_ok=True)
        unlock(self._lock)


def member_folder(config: dict[str, Any], differing: Sequence[str] = ()) -> Path:
    """The folder of a sweep member, in output_dir or outputs/, named by the settings in which the members differ.

    Where that name is taken by a run with other settings, and where an earlier version began the member under its
    default name, it is the default name.
    """
    parent = Path("outputs" if config["output_dir"] is None else config["output_dir"])
    by_hash, path = parent / default_name(config), parent / member_name(config, differing)
    return by_hash if by_hash.exists() or _differences(path, config) else path


def open_run_folder(
    config: dict[str, Any], *, sweep_member: bool = False, differing: Sequence[str] = ()
) -> RunFolder | None:
    """Finds or makes the folder of a run, locks it, and writes config.yaml.

    Without ``output_dir`` the folder has the default name: the same command goes on with its unfinished run, and takes
    the next free suffix (-2, -3, ...) where that run is finished or still alive. An explicit ``output_dir`` is the
    folder itself; the members of a sweep have folders inside it (see ``member_folder``). With ``overwrite`` the run in
    the folder, default or explicit, is replaced, unless it is this very run and can go on from a checkpoint.

    Args:
        config: the resolved config.
        sweep_member: whether this is one run of several.
        differing: the settings in which these differ, as "ffn.num_tables", "seed".

    Returns:
        The folder, or None where this member of a sweep is already finished.

    Raises:
        UserError: the folder is finished, in use, holds another run, or cannot be written.
    """
    name = default_name(config)
    if config["output_dir"] is None and not config["overwrite"] and not sweep_member:
        for path in _suffixed(Path("outputs") / name):
            held = None if (path / SUMMARY).exists() else lock(path)
            if held is None:
                continue
            if not (path / SUMMARY).exists() and not _differences(path, config):
                return _claim(path, held, config)
            unlock(held)
    by_name = sweep_member or config["output_dir"] is None
    path = member_folder(config, differing) if by_name else Path(config["output_dir"])
    if (path / SUMMARY).exists() and not config["overwrite"]:
        if sweep_member:
            logger.info("%s is finished: skipped", path)
            return None
        raise UserError(f"{path} holds a finished run: give another output_dir, or overwrite=true to replace it")
    held = lock(path)
    if held is None:
        raise UserError(f"{path} is in use by another run: wait for it, or give another output_dir")
    try:
        _prepare_explicit(path, config)
    except BaseException:
        unlock(held)
        raise
    return _claim(path, held, config)


def _prepare_explicit(path: Path, config: dict[str, Any]) -> None:
    """Decides between resuming, replacing and refusing a folder that the user named."""
    if (path / SUMMARY).exists():
        if not config["overwrite"]:  # finished while this run waited for the lock
            raise UserError(f"{path} holds a finished run: give another output_dir, or overwrite=true to replace it")
        _clear(path)
    elif (path / CONFIG).exists() and config["overwrite"]:
        if not _can_go_on(path, config):
            _clear(path)
    elif (path / CONFIG).exists():
        differences = _differences(path, config)
        if differences:
            raise UserError(
                f"{path} holds an unfinished run with other settings ({'; '.join(differences[:4])}"
                f"{'; ...' if len(differences) > 4 else ''}): repeat its command, give another output_dir, or "
                "overwrite=true to replace it"
            )
    elif any(entry.name != LOCK for entry in path.iterdir()):
        raise UserError(f"{path} is not empty and holds no run: give another output_dir")


def _can_go_on(path: Path, config: dict[str, Any]) -> bool:
    """Whether an unfinished run has these settings and a whole checkpoint."""
    try:
        return not _differences(path, config) and newest_checkpoint(path / CHECKPOINTS) is not None
    except UserError:  # its config or all its checkpoints are damaged
        if not ((path / CHECKPOINTS).exists() or (path / METRICS).exists()):
            raise  # somebody else's config.yaml
        return False


def _claim(path: Path, held: Lock, config: dict[str, Any]) -> RunFolder:
    folder = RunFolder(path, held, fresh=not (path / CONFIG).exists())
    if folder.fresh:
        try:
            folder.write_config(config)
        except BaseException:
            unlock(held)
            raise
    return folder


def _clear(path: Path) -> None:
    """Removes a run: summary.json first so that an interruption leaves nothing that looks finished, and config.yaml
    last so that what it leaves still is a run."""
    for name in (SUMMARY, METRICS, CHECKPOINTS, MODEL, TOKEN_COUNTS, "trackio", "wandb", CONFIG):
        entry = path / name
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)


def _suffixed(path: Path) -> Iterator[Path]:
    yield path
    number = 2
    while True:
        yield path.with_name(f"{path.name}-{number}")
        number += 1


def _differences(path: Path, config: dict[str, Any]) -> list[str]:
    """What defines a run and is not the same in a folder's config.yaml, as "key: old, now new"."""
    if not (path / CONFIG).exists():
        return []
    old, new = dict(flatten(read_config(path))), dict(flatten(config))
    return [
        f"{key}: {old.get(key)}, now {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and key not in (*MAY_CHANGE, *MAY_MOVE) and key.split(".")[0] not in MAY_CHANGE
    ]


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
