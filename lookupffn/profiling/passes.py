"""Figures measured in passes over all of them, since other work disturbs all that is measured for some seconds."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from tqdm import tqdm

from lookupffn.errors import UserError
from lookupffn.profiling import system

LEAST = 10  # passes over everything
AGREE = 0.05
DISTURBED = 0.05  # of all processors' time
_BEST = 3  # rates that make a figure
_PAUSE_S = 0.2

Key = TypeVar("Key", bound=Hashable)


def in_passes(
    measurements: Sequence[Callable[[], Mapping[Key, float]]],
    *,
    seconds: float,
    least: int = LEAST,
    strict: bool = False,
    bar: tqdm | None = None,
) -> dict[Key, list[float]]:
    """Rates of each figure: some of all, then more of those that are not settled.

    Args:
        measurements: each measures the rates of some figures once.
        seconds: after which no further pass is begun; ``least`` passes are made in any case.
        least: passes over all figures that other work must not disturb.
        strict: give up where there were fewer of those.
        bar: counts measurements.

    Raises:
        UserError: other work disturbed too many passes, if ``strict``.
    """
    found: dict[Key, list[float]] = defaultdict(list)
    left = list(measurements)
    end = time.monotonic() + seconds
    done = undisturbed = 0
    while left and (done < least or time.monotonic() < end):
        unsettled = []
        with system.OtherWork() as work:
            for measure in left:
                rates = measure()
                for key, rate in rates.items():
                    found[key].append(rate)
                if not all(settled(found[key]) for key in rates):
                    unsettled.append(measure)
                if bar is not None:
                    bar.update()
        done += 1
        undisturbed += work.share < DISTURBED
        if done >= least:
            left = unsettled if undisturbed >= least else left
            if bar is not None:
                bar.total += len(left)
                bar.set_postfix_str(f"{len(unsettled)} figures do not agree yet")
            if len(left) < len(measurements) / 10:
                time.sleep(_PAUSE_S)  # a short pass may see nothing but one piece of other work
    if strict and measurements and undisturbed < least:
        raise UserError(
            f"other work disturbed {done - undisturbed} of {done} passes (more than {DISTURBED:.0%} of the machine): "
            "repeat the command when nothing else runs; it goes on where it was"
        )
    return dict(found)


def one_each(figures: Mapping[Key, Callable[[], float]]) -> list[Callable[[], Mapping[Key, float]]]:
    """``measurements`` of one figure each, from what measures its rate once."""
    return [partial(_one, key, measure) for key, measure in figures.items()]


def _one(key: Key, measure: Callable[[], float]) -> dict[Key, float]:
    return {key: measure()}


def settled(rates: Sequence[float]) -> bool:
    """Whether the best three agree."""
    best = sorted(rates, reverse=True)[:_BEST]
    return best[-1] >= (1 - AGREE) * best[0]


def value(rates: Sequence[float]) -> float:
    """The mean of the best three: other work makes a rate lower, and the best alone may be luck."""
    best = sorted(rates, reverse=True)[:_BEST]
    return sum(best) / len(best)
