"""A machine file's content without a machine: numbers of the order of a two-core server's share."""

from typing import Any

from lookupffn.profiling.machine import ACCESSES, PAGES, Curve, Level, Machine, Rate
from lookupffn.profiling.measure import ROWS

SIZES = tuple(float(1 << power) for power in range(14, 32))


def falling(fast: float, slow: float, border: float = 1 << 25) -> Curve:
    """A rate that falls from ``fast`` to ``slow`` about a working set."""
    share = [1 / (1 + (size / border) ** 2) for size in SIZES]
    return Curve(SIZES, tuple(slow * (fast / slow) ** part for part in share))


def machine(**changes: Any) -> Machine:
    """Two cores with 1 MB of second-level cache each and 32 MB together."""
    rows = {}
    for which, threads in (("one", 1), ("all", 2)):
        for pages in PAGES:
            for access in ACCESSES:
                for row in ROWS:
                    slow = 1.5 * (row / 64) ** 0.25 * (1 + (pages == "huge")) * (1 + (access == "prefetched"))
                    rows[which, pages, access, row] = falling(100.0 * threads, slow * threads)
    values = {
        "name": "a made-up machine",
        "kind": "measured",
        "cores": 2,
        "clock_ghz": 3.5,
        "arithmetic": {"float32": Rate(110, 220), "bfloat16": Rate(220, 440), "int8": Rate(440, 880)},
        "levels": (
            Level("L1", 32 << 10, 32 << 10, 1, Rate(200, 400)),
            Level("L2", 1 << 20, 1 << 20, 1, Rate(110, 220)),
            Level("L3", 32 << 20, 24 << 20, 2, Rate(70, 140)),
            Level("memory", 24 << 30, 24 << 30, 2, Rate(25, 35)),
        ),
        "streams": {"one": falling(120, 25), "all": falling(240, 35)},
        "rows": rows,
        "latency_ns": Curve(SIZES, tuple(1 + 100 * (1 - 1 / (1 + (size / (1 << 25)) ** 2)) for size in SIZES)),
        "call_us": {"operator": 1.5, "linear": 9.0, "gemm": 24.0, "lookup": 40.0, "lookup_int8": 45.0, "page": 0.3},
    }
    return Machine(**{**values, **changes})
