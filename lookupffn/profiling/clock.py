"""How long functions take, by turns in one process, on a machine that may do other work now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


def by_turns(functions: Mapping[str, Callable[[], Any]], *, seconds: float = 0.5, least: int = 7) -> dict[str, float]:
    """Seconds a call of each function, the lower quartile over rounds in which each is called once.

    Other work makes a call slower and never faster, so that a quartile is nearer to the
    undisturbed time than the median.

    Args:
        functions: what to call, by name.
        seconds: how long to go on, all functions together.
        least: rounds at least.
    """
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < least or time.perf_counter() < end:
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
        rounds += 1
    return {name: float(np.quantile(values, 0.25)) for name, values in times.items()}
