"""Members of a sweep that run at once, each in a process of its own: how many, and how they stop together."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from omegaconf import DictConfig

from lookupffn.cli.output import say
from lookupffn.cli.progress import RUNNING, read_notes
from lookupffn.signals import Interrupted, handling, ignore

JOBLIB = "JoblibLauncher"
_STOP = "stop"


class _State:
    """Of a member's process: the one that started it."""

    parent: int | None = None


def members_at_once(settings: DictConfig, size: int | None) -> int:
    """How many members a sweep runs at once on this machine, by Hydra's own part of the config.

    With hydra/launcher=joblib and no ``n_jobs``: as many as there are cores for their threads (OMP_NUM_THREADS, else
    one each), but one on a machine with a GPU, which they would share; never more than there are.
    """
    launcher = settings.launcher
    if not launcher["_target_"].endswith(JOBLIB):
        return 1
    count = int(launcher.n_jobs)
    if count < 0:
        import torch

        threads = os.environ.get("OMP_NUM_THREADS", "")
        count = usable_cores() // max(1, int(threads) if threads.isdecimal() else 1)
        count = 1 if torch.accelerator.is_available() else max(1, count)
    return count if size is None else max(1, min(count, size))


def usable_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def launcher_overrides(settings: DictConfig, at_once: int) -> list[str]:
    """What tells joblib how many members run at once."""
    launcher = settings.launcher
    return [f"hydra.launcher.n_jobs={at_once}"] if launcher["_target_"].endswith(JOBLIB) and launcher.n_jobs < 0 else []


def prepare_processes(at_once: int) -> None:
    """Sets what members' processes inherit: one thread each unless OMP_NUM_THREADS says otherwise, and silent bars."""
    if at_once > 1:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        # they would overwrite each other
        os.environ.setdefault("TQDM_DELAY", "1e9")


def parent_of_member(sweep_pid: int) -> int | None:
    """The sweep's process, inside a member's own process that it has started on this machine; else None."""
    if os.getpid() == sweep_pid:
        return None
    if os.getppid() == sweep_pid:
        _State.parent = sweep_pid
    return _State.parent


@contextmanager
def stopping_together(folder: Path, parent: int | None) -> Iterator[None]:
    """Around a member: in a process of its own a signal stops it as it stops a single run, and then all of the sweep.

    Args:
        folder: of the sweep's notes.
        parent: as ``parent_of_member`` has it.
    """
    if parent is None:
        yield
        return
    ignore()  # also between two members: a worker that dies there takes the others with it
    try:
        with handling():
            if (folder / _STOP).exists() or os.getppid() != parent:
                raise Interrupted(signal.SIGTERM, "")
            yield
    except Interrupted as stop:
        if not (folder / _STOP).exists() and os.getppid() == parent:
            os.kill(parent, signal.SIGTERM)
        say(str(stop))
        raise


def stop_members(folder: Path) -> None:
    """Tells the members that run in other processes to stop, and waits until they have written their checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _STOP).touch()
    told: set[int] = set()
    while waiting := [pid for note in read_notes(folder, RUNNING).values() if _alive(pid := note["pid"])]:
        for pid in set(waiting) - told:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        told.update(waiting)
        time.sleep(0.1)


def _alive(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
