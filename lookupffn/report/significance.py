"""Whether a difference between two variants is more than their seeds make by chance.

Two runs of one seed see the same data in the same order, so seeds are compared in pairs where both variants have them.
Intervals are Student's t at 95%.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CONFIDENCE = 0.95
BETTER, WORSE, TIE = "better", "worse", "tie"
UNKNOWN, EARLY = "one seed: unknown noise", "too early"


@dataclass(frozen=True)
class Spread:
    """A mean over seeds, and the sample standard deviation (None with one seed)."""

    mean: float
    std: float | None


@dataclass(frozen=True)
class Difference:
    """How one sample differs from another.

    Attributes:
        mean: of the differences where seeds are paired, else the difference of the means.
        low, high: the 95% t-interval of the mean; None where either side has a single seed.
        p: of the two-sided t-test; None as above.
        pairs: seeds that both have; 0 where the interval is Welch's, of samples that share fewer than two.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    pairs: int

    def verdict(self, *, early: bool = False, lower_is_better: bool = True) -> str:
        """One of ``BETTER``, ``WORSE``, ``TIE`` (the interval includes zero), ``UNKNOWN`` and ``EARLY``."""
        if self.low is None or self.high is None:
            return UNKNOWN
        if early:
            return EARLY
        if self.low <= 0 <= self.high:
            return TIE
        return BETTER if (self.high < 0) == lower_is_better else WORSE


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation."""
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def difference(sample: Mapping[Any, float], other: Mapping[Any, float]) -> Difference:
    """One sample less another, paired where they share at least two seeds.

    Args:
        sample: a value a seed.
        other: the same of what it is compared with.
    """
    from scipy import stats  # takes a second, which a refused command need not wait for

    shared = [seed for seed in sample if seed in other]
    if len(shared) >= 2:
        differences = np.array([sample[seed] - other[seed] for seed in shared])
        with warnings.catch_warnings():  # of equal differences, whose interval is a point
            warnings.simplefilter("ignore", RuntimeWarning)
            test = stats.ttest_1samp(differences, 0.0)
        return _interval(float(differences.mean()), test, len(shared))
    mean = statistics.fmean(sample.values()) - statistics.fmean(other.values())
    if min(len(sample), len(other)) < 2:
        return Difference(mean, None, None, None, len(shared))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        test = stats.ttest_ind(list(sample.values()), list(other.values()), equal_var=False)
    return _interval(mean, test, 0)


def _interval(mean: float, test: Any, pairs: int) -> Difference:
    low, high = test.confidence_interval(CONFIDENCE)
    if not np.isfinite([low, high, test.pvalue]).all():  # no spread at all
        return Difference(mean, mean, mean, 1.0 if mean == 0 else 0.0, pairs)
    return Difference(mean, float(low), float(high), float(test.pvalue), pairs)


def holm(p: Sequence[float]) -> list[float]:
    """P-values adjusted for their number by Holm's step-down method, in the same order."""
    order = sorted(range(len(p)), key=p.__getitem__)
    adjusted, highest = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = highest
    return adjusted
