"""Figures measured in passes over all of them, since other work disturbs all that is measured for some seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

from tqdm import tqdm

LEAST = 14  # passes over everything
AGREE = 0.05
_BEST = 3  # rates that make a figure
_PAUSE_S = 0.2

Key = TypeVar("Key", bound=Hashable)


def in_passes(
    figures: Mapping[Key, Callable[[], float]], *, seconds: float, least: int = LEAST, bar: tqdm | None = None
) -> dict[Key, list[float]]:
    """Rates of each figure: ``least`` of all, then more of those that are not settled.

    Args:
        figures: what measures a rate once, by name.
        seconds: after which no further pass is begun; ``least`` passes are made in any case.
        least: passes over all figures.
        bar: counts measurements.
    """
    found: dict[Key, list[float]] = {key: [] for key in figures}
    left = list(figures)
    end = time.monotonic() + seconds
    done = 0
    while left and (done < least or time.monotonic() < end):
        for key in left:
            found[key].append(figures[key]())
            if bar is not None:
                bar.update()
        done += 1
        if done >= least:
            left = [key for key in left if not settled(found[key])]
            if bar is not None:
                bar.total += len(left)
                bar.set_postfix_str(f"{len(left)} figures do not agree yet")
            if len(left) < len(figures) / 10:
                time.sleep(_PAUSE_S)  # a short pass may see nothing but one piece of other work
    return found


def settled(rates: Sequence[float]) -> bool:
    """Whether the best three agree."""
    best = sorted(rates, reverse=True)[:_BEST]
    return best[-1] >= (1 - AGREE) * best[0]


def value(rates: Sequence[float]) -> float:
    """The mean of the best three: other work makes a rate lower, and the best alone may be luck."""
    best = sorted(rates, reverse=True)[:_BEST]
    return sum(best) / len(best)
