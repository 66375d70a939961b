"""How far the members of a sweep are, and how long the rest will take: read from their progress bars."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

# with fewer steps an estimate would be one of the start-up
ENOUGH_STEPS = 30
NOTE_EVERY_S, LINE_EVERY_S = 1.0, 60.0
RUNNING, ENDED = ".running", ".ended"

Note = Mapping[str, Any]

logger = logging.getLogger(__name__)


@contextmanager
def noting_progress(path: Path, parent: int | None) -> Iterator[None]:
    """Inside the block a thread keeps the member's progress in ``path.running``; afterwards it stays in ``path.ended``.

    Args:
        path: of the member's notes, without a suffix.
        parent: the process of the sweep, where the member has one of its own: when it is gone the member stops too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    note: dict[str, Any] = {"pid": os.getpid(), "began": time.time()}
    over = threading.Event()

    def write(suffix: str) -> None:
        note["seen"] = time.time()
        scratch = path.with_suffix(".writing")
        with suppress(OSError):  # the sweep has ended, and its folder with it
            scratch.write_text(json.dumps(note), encoding="utf-8")
            scratch.replace(path.with_suffix(suffix))

    def keep() -> None:
        while not over.wait(NOTE_EVERY_S):
            note.update(_steps())
            write(RUNNING)
            if parent is not None and os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    write(RUNNING)
    thread = threading.Thread(target=keep, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        write(ENDED)
        path.with_suffix(RUNNING).unlink(missing_ok=True)


def _steps() -> dict[str, Any]:
    """Of the bar that counts training steps; empty where there is none, or none with a known end."""
    for bar in list(getattr(tqdm, "_instances", ())):
        if getattr(bar, "unit", None) == "step" and bar.total and hasattr(bar, "start_t"):
            return {"first": bar.initial, "step": bar.n, "steps": bar.total, "stepping_since": bar.start_t}
    return {}


def read_notes(folder: Path, suffix: str) -> dict[int, Note]:
    """What members have noted, by their number."""
    notes = {}
    for path in sorted(folder.glob(f"*{suffix}")):
        with suppress(OSError, ValueError):  # removed meanwhile
            notes[int(path.stem)] = json.loads(path.read_text(encoding="utf-8"))
    return notes


def seconds_of(note: Note) -> float | None:
    """What the member takes from its first step to its last; None where it has trained too little to tell."""
    done = note.get("step", 0) - note.get("first", 0)
    if done <= 0 or done < min(ENOUGH_STEPS, note["steps"] - note["first"]):
        return None
    startup = note["stepping_since"] - note["began"]
    return startup + (note["seen"] - note["stepping_since"]) * note["steps"] / done


def seconds_left(size: int, running: Mapping[int, Note], ended: Mapping[int, Note], at_once: int) -> float | None:
    """How long the sweep goes on; None before any member can tell.

    A member that had been finished before trained nothing and tells nothing; one that was resumed is counted by the
    steps that it did in this sweep.

    Args:
        size: how many members there are.
        running: notes of those that run.
        ended: notes of those that do not any more.
        at_once: how many run at once.
    """
    known = [seconds for note in (*running.values(), *ended.values()) if (seconds := seconds_of(note)) is not None]
    if not known:
        return None
    mean = sum(known) / len(known)
    rests = []
    for note in running.values():
        whole = seconds_of(note)
        if whole is None:
            rests.append(max(0.0, mean - (note["seen"] - note["began"])))
        else:
            per_step = (note["seen"] - note["stepping_since"]) / (note["step"] - note["first"])
            rests.append(per_step * (note["steps"] - note["step"]))
    waiting = max(0, size - len(running) - len(ended))
    return max((sum(rests) + waiting * mean) / at_once, *rests, 0.0)


def spoken(seconds: float) -> str:
    """1 h 10 min, 5 min, 40 s."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


class Watch:
    """A thread that logs how far a sweep is: when a member has ended, when the time can be told first, and every minute
    where members have no bars to show it."""

    def __init__(self, folder: Path, size: int | None, at_once: int) -> None:
        """
        Args:
            folder: of the members' notes.
            size: how many members there are; None where that is not known.
            at_once: how many run at once.
        """
        self._folder, self._size, self._at_once = folder, size, at_once
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="sweep", daemon=True)
        self._said, self._ended, self._told = time.monotonic(), 0, False

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._over.wait(NOTE_EVERY_S):
            self.look()

    def look(self) -> None:
        """Logs a line where one is due."""
        running, ended = read_notes(self._folder, RUNNING), read_notes(self._folder, ENDED)
        running = {number: note for number, note in running.items() if number not in ended}
        left = None if self._size is None else seconds_left(self._size, running, ended, self._at_once)
        minute = self._at_once > 1 and time.monotonic() - self._said >= LINE_EVERY_S
        # a member that was skipped says so itself
        trained = sum("steps" in note for note in ended.values())
        if not (minute or trained > self._ended or (left is not None and not self._told)):
            return
        self._said, self._ended, self._told = time.monotonic(), trained, left is not None
        if self._size is not None and len(ended) == self._size:
            return
        logger.info("%s", self._line(running, len(ended), left))

    def _line(self, running: Mapping[int, Note], ended: int, left: float | None) -> str:
        of = "" if self._size is None else f" of {self._size}"
        steps = [
            f"member {number + 1} at step {note['step']:,} of {note['steps']:,}"
            for number, note in running.items()
            if "steps" in note
        ]
        parts = [f"{ended}{of} members done", *steps]
        return "; ".join(parts if left is None else [*parts, f"about {spoken(left)} left"])
