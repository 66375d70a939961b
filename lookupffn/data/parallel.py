"""Worker processes that keep the order of their work."""

import multiprocessing
import os
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from lookupffn import signals
from lookupffn.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

_MOST_PROCESSES = 32
_AHEAD = 3  # items a worker may have waiting: bounds memory, keeps it busy


def process_count(asked: int | None = None) -> int:
    """How many workers to use: what was asked, or one for each core this process may run on."""
    if asked is not None:
        return max(1, int(asked))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST_PROCESSES)


def _context() -> multiprocessing.context.BaseContext:
    # fork starts in milliseconds and does not import the caller's main module (and torch) again; where it is unsafe,
    # Python's own choice is taken
    return multiprocessing.get_context("fork" if sys.platform.startswith("linux") else None)


def _start(initializer: Callable | None, arguments: tuple) -> None:
    """Begin a worker's life."""
    signals.ignore()  # Ctrl-C and the like are for the parent, which then ends its workers
    # a worker that outlived a killed parent would wait for work for ever, and hold the lock that it inherited
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if initializer is not None:
        initializer(*arguments)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


@contextmanager
def _pool(processes: int, initializer: Callable | None, arguments: tuple) -> Iterator[Executor]:
    with warnings.catch_warnings():
        # from 3.12 Python warns of a fork beside threads; the workers run plain Python or one Rust thread
        warnings.simplefilter("ignore", DeprecationWarning)
        executor = ProcessPoolExecutor(
            processes, mp_context=_context(), initializer=_start, initargs=(initializer, arguments)
        )
        try:
            yield executor
        except BaseException as error:
            # what they are at may take minutes, and nobody wants it any more; where one was killed, Python 3.14
            # waits for the others after a SIGTERM, which they ignore
            for worker in list((executor._processes or {}).values()):
                worker.kill()
            if not isinstance(error, BrokenProcessPool):
                raise
            raise UserError(
                "a worker process was killed while preparing the data, most likely for want of memory: close other "
                "programs or start fewer processes"
            ) from error
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


def ordered_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    processes: int,
    initializer: Callable | None = None,
    arguments: tuple = (),
) -> Generator[Result, None, None]:
    """``map`` over worker processes: results in the order of ``items``, only a bounded number of them in flight.

    ``function`` and ``initializer`` must be importable. In a daemonic process, which may have no children, the work
    is done in place.
    """
    if multiprocessing.current_process().daemon:
        if initializer is not None:
            initializer(*arguments)
        yield from map(function, items)
        return
    with _pool(processes, initializer, arguments) as executor:
        waiting: deque = deque()
        for item in items:
            waiting.append(executor.submit(function, item))
            if len(waiting) >= _AHEAD * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def in_child(function: Callable[..., Result], *arguments: object) -> Result:
    """Run one call in a child process and return its result."""
    if multiprocessing.current_process().daemon:
        return function(*arguments)
    with _pool(1, None, ()) as executor:
        return executor.submit(function, *arguments).result()
