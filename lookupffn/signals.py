"""SIGINT and SIGTERM: they end the work at once, or, where a training loop defers them, after the step it is in.

The first of either counts. A SIGTERM after it changes nothing: a batch system may send it to a launcher and to its
processes, and the launcher passes it on. A SIGINT after it ends the process by the system's own hand.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

HANDLED = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal asked for the end; not an ``Exception``, so that nothing on the way takes it for a failure.

    Attributes:
        signum: which signal.
    """

    def __init__(self, signum: int, message: str = "") -> None:
        super().__init__(message or f"stopped by {name(signum)}")
        self.signum = signum

    def __reduce__(self) -> tuple[type, tuple[int, str]]:
        # one that cannot be unpickled breaks the pool of processes that it comes home to
        return type(self), (self.signum, str(self))

    @property
    def exit_status(self) -> int:
        """As a shell reports it: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.signum


class _State:
    """Of this process's handlers."""

    owner: int | None = None  # the process that installed them; None while there are none
    received: int | None = None
    deferring = False
    before_raising: Callable[[], object] | None = None


def name(signum: int) -> str:
    """SIGTERM for 15."""
    return signal.Signals(signum).name


def received() -> int | None:
    """The signal that came, if one came since ``handling`` began."""
    return _State.received if _State.owner == os.getpid() else None


def _handle(signum: int, frame: FrameType | None) -> None:
    if os.getpid() != _State.owner:
        return  # a forked worker: its parent got the signal too, and ends it
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if _State.received is not None:
        return
    _State.received = signum
    if not _State.deferring:
        if _State.before_raising is not None:
            _State.before_raising()
        raise Interrupted(signum)
    if os.environ.get("RANK", "0") == "0":
        # not through logging, which this may have interrupted halfway through a line
        os.write(2, f"\n{name(signum)}: stopping after this step (Ctrl-C: at once)\n".encode())


@contextmanager
def handling() -> Iterator[None]:
    """Inside the block the first signal raises ``Interrupted``. Nothing changes outside the main thread, where Python
    takes no signals, and within another such block."""
    if _State.owner == os.getpid() or threading.current_thread() is not threading.main_thread():
        yield
        return
    _State.owner, _State.received = os.getpid(), None
    before = {signum: signal.signal(signum, _handle) for signum in HANDLED}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        _State.owner = None


@contextmanager
def stopping_first(others: Callable[[], object]) -> Iterator[None]:
    """Inside the block the first signal calls ``others``, which stops what else runs, before it raises."""
    _State.before_raising = others
    try:
        yield
    finally:
        _State.before_raising = None


@contextmanager
def deferring() -> Iterator[Callable[[], int | None]]:
    """Inside the block a signal is only noted; yields what tells it. At the block's end it raises ``Interrupted``."""
    with ExitStack() as stack:
        stack.enter_context(handling())
        _State.deferring = True
        try:
            yield received
        finally:
            _State.deferring = False
        if (signum := received()) is not None:
            raise Interrupted(signum)


def ignore() -> None:
    """For worker processes, which their parent ends."""
    for signum in HANDLED:
        signal.signal(signum, signal.SIG_IGN)
