"""The measuring loops of csrc/, compiled for this machine as the kernels are."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from lookupffn.errors import UserError
from lookupffn.ops.build import BuildError, Sources
from lookupffn.ops.library import CSRC, NativeLibrary

READ, WRITE, COPY = 0, 1, 2
ORDERS = ("token by token", "table by table", "in slices")
ROW_ROUNDS = 11
LINE = 64
_CACHES = 256 << 20  # bytes: more than any cache holds

_LIBRARY = NativeLibrary(Sources("profiling", Path(__file__).parent / "csrc", (CSRC,)))


def processors() -> list[int]:
    """One logical processor for each core that this process may use.

    Where the system does not say which share a core, all of them.
    """
    try:
        allowed = sorted(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return list(range(os.cpu_count() or 1))
    firsts: dict[str, int] = {}
    for cpu in allowed:
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            siblings = path.read_text().strip()
        except OSError:
            siblings = str(cpu)
        firsts.setdefault(siblings, cpu)
    return sorted(firsts.values())


class Buffer:
    """Memory to measure on: its address and size."""

    def __init__(self, address: int, size: int) -> None:
        self.address, self.size = address, size


@dataclass(frozen=True)
class Way:
    """How a gather is done.

    Attributes:
        element: bytes a number: 4 float32, 2 bfloat16, 1 int8.
        order: of ``ORDERS``: a token reads all its rows before the next token, as int8 does in any case; or all
            tokens read a table before the next; or so from copies of tables, some columns wide, that fit the
            second-level cache, where nothing is prefetched.
        ahead: rows between a prefetch and its use, 0 for none.
        level: the cache that prefetching fills.
        threads: how many.
        by_columns: they share out the columns; else the tokens.
    """

    element: int = 4
    order: str = "table by table"
    ahead: int = 4
    level: int = 2
    threads: int = 1
    by_columns: bool = False


class Loops:
    """The loops; each call is one measurement of some milliseconds. Rates are in units of 1e9 a second."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        cpus = processors()
        self.cores = len(cpus)
        self.warm = library.warm_rounds()  # of a measurement, which do not count
        # pinning is Linux's; elsewhere the loops ignore it
        library.set_processors((ctypes.c_int * len(cpus))(*cpus), len(cpus))

    def kinds(self) -> list[tuple[str, str]]:
        """Type and instruction of each arithmetic loop of this build."""
        lines = self._library.arithmetic_kinds().decode().splitlines()
        return [tuple(line.split(": ", 1)) for line in lines]

    def arithmetic(self, kind: int, threads: int) -> float:
        """Operations of the kind at an index of ``kinds``."""
        return 1e-9 * self._library.arithmetic_rate(kind, threads, 30)

    def clock(self, threads: int) -> float:
        """GHz of each of some threads that compute."""
        return 1e-9 * self._library.clock_rate(threads, 30)

    def stream(self, buffer: Buffer, size: int, threads: int, operation: int = READ) -> float:
        """Bytes of passes over the first ``size`` bytes, shared out among the threads."""
        rounds = max(3, min(25, _CACHES // size))
        return 1e-9 * self._library.stream_rate(buffer.address, size, threads, operation, rounds)

    def rows(
        self, buffer: Buffer, size: int, row: int, threads: int, ahead: int, level: int = 2, rounds: int = ROW_ROUNDS
    ) -> float:
        """Bytes of rows read at random in the first ``size`` bytes; prefetched ``ahead`` rows before, to L1 or L2."""
        return 1e-9 * self._library.row_rate(buffer.address, size, row, threads, ahead, level, rounds)

    def rows_a_round(self, row: int) -> int:
        """How many rows of some bytes ``rows`` reads in each of its rounds, a thread."""
        return self._library.rows_a_round(row)

    def latency(self, buffer: Buffer, size: int) -> float:
        """Nanoseconds of a read that waits for the read before it."""
        return 1e9 * self._library.chase_seconds(buffer.address, size, 7)

    def page(self, size: int = 64 << 20) -> float:
        """Microseconds until a new page of 4 KB can be used."""
        return 1e6 * self._library.page_seconds(size, 5)

    def gather(self, buffer: Buffer, codes: np.ndarray, way: Way, rows: int, columns: int) -> float:
        """Seconds of adding rows of tables [T, rows, columns] in a buffer.

        Args:
            buffer: on the pages to measure; its first bytes are the tables.
            codes: [rounds, T, M] int32, new ones for each round, of which two warm up; C-contiguous. T is a multiple
                of 4 for int8.
            way: how.
            rows: of a table.
            columns: a multiple of 64.

        Raises:
            ValueError: the tables do not fit the buffer, or there are no codes beyond those that warm up.
        """
        rounds, tables, tokens = codes.shape
        if rounds <= self.warm:
            raise ValueError(f"codes of more than {self.warm} rounds are needed, not {rounds}")
        if tables * rows * columns * way.element > buffer.size:
            raise ValueError("the buffer is too small for the tables")
        return self._library.gather_seconds(
            *(buffer.address, codes.ctypes.data, tables, rows, columns, tokens, way.element),
            *(ORDERS.index(way.order), way.ahead, way.level, way.threads, way.by_columns, rounds - self.warm),
        )

    @contextmanager
    def buffer(self, size: int, huge: bool) -> Iterator[Buffer]:
        """Memory for as long as the block runs.

        Raises:
            UserError: there is not as much.
        """
        address = self._library.buffer_new(size, huge)
        if not address:
            raise UserError(f"no {size >> 20} MB of memory to measure on")
        try:
            yield Buffer(address, size)
        finally:
            self._library.buffer_free(address, size)


@cache
def loops() -> Loops:
    """The loops of this machine, compiled at the first call.

    Raises:
        UserError: there is no compiler, or it failed.
    """
    return Loops(library())


@cache
def library() -> ctypes.CDLL:
    """The compiled csrc/, compiled at the first call.

    Raises:
        UserError: there is no compiler, or it failed.
    """
    try:
        loaded = ctypes.CDLL(str(_LIBRARY.path()))
    except (BuildError, OSError) as error:
        raise UserError(f"the loops that measure a machine cannot be compiled: {error}") from None
    integer, size, real, pointer = ctypes.c_int, ctypes.c_int64, ctypes.c_double, ctypes.c_void_p
    loaded.arithmetic_kinds.restype = ctypes.c_char_p
    signatures = {
        "set_processors": (None, [pointer, integer]),
        "arithmetic_rate": (real, [integer, integer, integer]),
        "clock_rate": (real, [integer, integer]),
        "stream_rate": (real, [pointer, size, integer, integer, integer]),
        "row_rate": (real, [pointer, size, size, integer, size, integer, integer]),
        "chase_seconds": (real, [pointer, size, integer]),
        "page_seconds": (real, [size, integer]),
        "buffer_new": (pointer, [size, integer]),
        "buffer_free": (None, [pointer, size]),
        "gather_seconds": (
            real,
            [pointer, pointer, *[size] * 4, integer, integer, size, *[integer] * 4],
        ),
        "rows_a_round": (size, [size]),
        "warm_rounds": (integer, []),
        "sampler_start": (None, [integer]),
        "sampler_stop": (None, []),
        "sampler_keep": (None, [integer]),
        "sampler_take": (size, [pointer, size]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    return loaded
