"""A run's folder: its name, who may write in it, whether it is new, unfinished or finished, and its metrics file.

config.yaml      the resolved config, written first
metrics.jsonl    one line per logged step
checkpoints/     see checkpoint.py
model/           HuggingFace format, written when training is done
summary.json     written last: a folder that has one is finished
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lookupffn.errors import UserError
from lookupffn.runs.checkpoint import newest_checkpoint
from lookupffn.storage import write_atomically

CONFIG, METRICS, CHECKPOINTS, MODEL, SUMMARY, LOCK = (
    "config.yaml",
    "metrics.jsonl",
    "checkpoints",
    "model",
    "summary.json",
    ".lock",
)
# what a run is written with, not what it computes
NOT_IN_NAME = ("output_dir", "overwrite", "cache_dir", "tracker")
# what may change when a run goes on; a longer budget stretches the rest of the schedule
MAY_CHANGE = (
    *NOT_IN_NAME,
    *(f"training.max_{unit}" for unit in ("steps", "tokens", "flops", "minutes")),
    *(f"training.{name}" for name in ("log_every", "validate_every", "checkpoint_every", "num_workers")),
    *(f"training.{name}" for name in ("keep_checkpoints", "keep_best", "skip_nonfinite", "validate_tokens")),
    "evaluation.batch_size",
)

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


class RunFolder:
    """A folder this process holds the lock of.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path, lock: Lock, *, fresh: bool) -> None:
        """
        Args:
            path: the folder.
            lock: on it.
            fresh: whether this process began the run.
        """
        self.path = path
        self._lock = lock
        self._fresh = fresh

    def release(self) -> None:
        """Gives the folder free; one that a refused run never wrote anything in goes away again."""
        if self._fresh and {entry.name for entry in self.path.iterdir()} <= {CONFIG, LOCK}:
            (self.path / CONFIG).unlink(missing_ok=True)
        _unlock(self._lock)


def default_name(config: dict[str, Any]) -> str:
    """{ffn}-{model}-{data}-seed{seed}-{hash of everything that defines the run}."""
    defining = {key: value for key, value in config.items() if key not in NOT_IN_NAME}
    digest = hashlib.sha256(json.dumps(defining, sort_keys=True).encode()).hexdigest()[:8]
    parts = [config["ffn"]["name"], config["model"]["name"], config["data"]["name"], f"seed{config['seed']}", digest]
    return "-".join(str(part).replace("/", "_") for part in parts)


def member_folder(config: dict[str, Any]) -> Path:
    """The folder of a sweep member: by its default name, in output_dir or outputs/."""
    return Path("outputs" if config["output_dir"] is None else config["output_dir"]) / default_name(config)


def read_summary(path: Path) -> dict[str, Any]:
    """A finished run's summary.json.

    Raises:
        UserError: it is missing or unreadable.
    """
    try:
        return json.loads((path / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path / SUMMARY}: {' '.join(str(error).split())}") from None


def open_run_folder(config: dict[str, Any], *, sweep_member: bool = False) -> RunFolder | None:
    """Finds or makes the folder of a run, locks it, and writes config.yaml.

    Without ``output_dir`` the folder has the default name: the same command goes on with its unfinished run, and takes
    the next free suffix (-2, -3, ...) where that run is finished or still alive. An explicit ``output_dir`` is the
    folder itself; the members of a sweep have folders of their default names inside it. With ``overwrite`` the run in
    the folder, default or explicit, is replaced, unless it is this very run and can go on from a checkpoint.

    Args:
        config: the resolved config.
        sweep_member: whether this is one run of several.

    Returns:
        The folder, or None where this member of a sweep is already finished.

    Raises:
        UserError: the folder is finished, in use, holds another run, or cannot be written.
    """
    name = default_name(config)
    if config["output_dir"] is None and not config["overwrite"]:
        for path in _suffixed(Path("outputs") / name):
            lock = None if (path / SUMMARY).exists() else _lock(path)
            if lock is None:
                continue
            if not (path / SUMMARY).exists() and not _differences(path, config):
                return _claim(path, lock, config)
            _unlock(lock)
    whole = sweep_member or config["output_dir"] is None
    path = member_folder(config) if whole else Path(config["output_dir"])
    if (path / SUMMARY).exists() and not config["overwrite"]:
        if sweep_member:
            logger.info("%s is finished: skipped", path)
            return None
        raise UserError(f"{path} holds a finished run: give another output_dir, or overwrite=true to replace it")
    lock = _lock(path)
    if lock is None:
        raise UserError(f"{path} is in use by another run: wait for it, or give another output_dir")
    try:
        _prepare_explicit(path, config)
    except BaseException:
        _unlock(lock)
        raise
    return _claim(path, lock, config)


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


def _claim(path: Path, lock: Lock, config: dict[str, Any]) -> RunFolder:
    fresh = not (path / CONFIG).exists()
    try:
        write_atomically(path / CONFIG, OmegaConf.to_yaml(OmegaConf.create(config)))
    except BaseException:
        _unlock(lock)
        raise
    return RunFolder(path, lock, fresh=fresh)


def _clear(path: Path) -> None:
    """Removes a run: summary.json first so that an interruption leaves nothing that looks finished, and config.yaml
    last so that what it leaves still is a run."""
    for name in (SUMMARY, METRICS, CHECKPOINTS, MODEL, "trackio", "wandb", CONFIG):
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


def _lock(path: Path) -> Lock | None:
    """Locks a folder, making it if need be; None where it is taken.

    flock dies with its owner, so a killed run leaves nothing to clean up.
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


def _unlock(lock: Lock) -> None:
    """Gives a folder free; the folders made for it go away again where nothing came to be in them."""
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


def read_config(path: Path) -> dict[str, Any]:
    """A run folder's config.yaml.

    Raises:
        UserError: it is missing or unreadable.
    """
    try:
        config = OmegaConf.to_container(OmegaConf.load(path / CONFIG), resolve=True)
    except (OSError, YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path / CONFIG}: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path / CONFIG} is not the config of a run")
    return config


def _differences(path: Path, config: dict[str, Any]) -> list[str]:
    """What defines a run and is not the same in a folder's config.yaml, as "key: old, now new"."""
    if not (path / CONFIG).exists():
        return []
    old, new = dict(flatten(read_config(path))), dict(flatten(config))
    return [
        f"{key}: {old.get(key)}, now {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and key not in MAY_CHANGE and key.split(".")[0] not in MAY_CHANGE
    ]


def flatten(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("training.max_steps", 1500), ... for every value of a nested config."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
