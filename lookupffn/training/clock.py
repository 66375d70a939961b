"""How long a run has been training."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Seconds spent in training steps, over all sessions of a run; monotonic."""

    def __init__(self, before: float) -> None:
        """``before``: seconds of earlier sessions."""
        self._total, self._since = before, None

    def start(self) -> None:
        """Counts from now."""
        self._since = time.perf_counter()

    def stop(self) -> None:
        """Counts until now."""
        self._total, self._since = self.seconds(), None

    def seconds(self) -> float:
        """Counted so far."""
        return self._total + (0.0 if self._since is None else time.perf_counter() - self._since)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Does not count what happens inside."""
        self.stop()
        try:
            yield
        finally:
            self.start()
