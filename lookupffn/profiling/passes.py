"""Figures measured in passes over all of them, since other work disturbs all that is measured for some seconds."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

from tqdm import tqdm

LEAST = 10  # passes over everything
AGREE = 0.05
_BEST = 3  # rates that make a figure
_PAUSE_S = 0.2

Key = TypeVar("Key", bound=Hashable)


def in_passes(
    measurements: Sequence[Callable[[], Mapping[Key, float]]],
    *,
    seconds: float,
    least: int = LEAST,
    bar: tqdm | None = None,
) -> dict[Key, list[float]]:
    """Rates of each figure: ``least`` of all, then more of those that are not settled.

    Args:
        measurements: each measures the rates of some figures once.
        seconds: after which no further pass is begun; ``least`` passes are made in any case.
        least: passes over all figures.
        bar: counts measurements.
    """
    found: dict[Key, list[float]] = defaultdict(list)
    left = list(measurements)
    end = time.monotonic() + seconds
    done = 0
    while left and (done < least or time.monotonic() < end):
        unsettled = []
        for measure in left:
            rates = measure()
            for key, rate in rates.items():
                found[key].append(rate)
            if not all(settled(found[key]) for key in rates):
                unsettled.append(measure)
            if bar is not None:
                bar.update()
        done += 1
        if done >= least:
            left = unsettled
            if bar is not None:
                bar.total += len(left)
                bar.set_postfix_str(f"{len(left)} figures do not agree yet")
            if len(left) < len(measurements) / 10:
                time.sleep(_PAUSE_S)  # a short pass may see nothing but one piece of other work
    return dict(found)


def settled(rates: Sequence[float]) -> bool:
    """Whether the best three agree."""
    best = sorted(rates, reverse=True)[:_BEST]
    return best[-1] >= (1 - AGREE) * best[0]


def value(rates: Sequence[float]) -> float:
    """The mean of the best three: other work makes a rate lower, and the best alone may be luck."""
    best = sorted(rates, reverse=True)[:_BEST]
    return sum(best) / len(best)
