"""What a command says: log lines, one line for a mistake, and streams that cannot fail."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

# Hydra announces each member of a sweep too
_NOISY = ("httpx", "httpcore", "urllib3", "filelock", "fsspec", "accelerate", "hydra", "hydra_plugins")


class ProgressHandler(logging.Handler):
    """Log lines on stderr that do not tear a progress bar apart; ``bars``: whether there are any."""

    def __init__(self, *, bars: bool = True) -> None:
        super().__init__()
        self._bars = bars

    def emit(self, record: logging.LogRecord) -> None:
        if not self._bars:  # tqdm would draw those that it does not show
            say(self.format(record))
            return
        with contextlib.suppress(OSError, ValueError):  # whoever read stderr is gone
            tqdm.write(self.format(record), file=sys.stderr)


def configure_logging(speaker: str = "") -> None:
    """INFO from the main process, warnings from the others.

    Args:
        speaker: begins each line of a process that runs beside others, and shows no progress bars.
    """
    handler = ProgressHandler(bars=not speaker)
    handler.setFormatter(logging.Formatter(f"[%(asctime)s] {speaker}%(message)s", datefmt="%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)


def report_failure(message: str) -> None:
    """One line on stderr; with several processes it says which one speaks."""
    rank = os.environ.get("RANK")
    prefix = f"error (process {rank})" if rank not in (None, "0") else "error"
    say(f"{prefix}: {' '.join(message.split())}")


def say(line: str) -> None:
    """A line on stderr, as long as somebody reads it."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def one_line(error: Exception) -> str:
    """An exception's message as a single line."""
    return " ".join(str(error).split()) or type(error).__name__


class _Stream:
    """A standard stream that goes on without its reader: what is written after that is dropped."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """As the stream's."""
        with self._dropping():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """As the stream's."""
        with self._dropping():
            self._stream.flush()

    @contextlib.contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            # what is left in the buffer must go somewhere, or Python complains when it ends
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def use_lasting_streams() -> None:
    """Makes output the least important thing that a command does.

    A stream that was closed before the start (``>&-``) becomes /dev/null: else the first file that is opened takes its
    number, and what is meant for the terminal is written into that file. One whose reader goes away (``| head``) drops
    the rest. Letters that the terminal's encoding does not have are written as escapes.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
        if not number:
            continue
        stream = getattr(sys, name)
        if stream is None:
            stream = open(number, "w", closefd=False)  # noqa: SIM115
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
            setattr(sys, name, _Stream(stream))


def use_utf8() -> None:
    """Starts Python again in its UTF-8 mode where the locale cannot name every file.

    Python does so by itself in the C locale, unless the surroundings forbid it; what an ASCII file system encoding
    cannot read of a path on the command line can be written neither to config.yaml nor to a log.
    """
    if sys.getfilesystemencoding() != "utf-8":
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "PYTHONUTF8": "1"})
