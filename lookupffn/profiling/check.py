"""Predicted against measured time: find what the kernels attain, and say how far predictions are off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from lookupffn.profiling.attained import MEANING
from lookupffn.profiling.explain import Prediction, predict
from lookupffn.profiling.machine import Machine
from lookupffn.profiling.points import Measured

MEDIAN_BAR, MOST_BAR, SIGN_MARGIN = 0.15, 0.35, 0.10
_PART_WEIGHT = 0.3  # parts are known by a few hundred samples only
_START_WEIGHT = 0.08
_LARGEST_CHANGE = np.log(30.0)


@dataclass(frozen=True)
class Errors:
    """How far predictions are off, over lookups and GEMMs together unless told.

    Attributes:
        count: points.
        lookup, gemm, both: |predicted / measured - 1| of each point.
        wrong_signs: points at which the wrong one of lookup and GEMM is said to be faster.
        decided: points at which the two differ by more than 10%, for which alone signs count.
    """

    count: int
    lookup: np.ndarray
    gemm: np.ndarray
    wrong_signs: int
    decided: int

    @property
    def both(self) -> np.ndarray:
        """Of all times."""
        return np.concatenate([self.lookup, self.gemm])

    def within_bars(self) -> bool:
        """Whether the median, nine of ten, and all signs are as they must be."""
        medians = [np.median(errors) <= MEDIAN_BAR for errors in (self.lookup, self.gemm)]
        most = [np.quantile(errors, 0.9) <= MOST_BAR for errors in (self.lookup, self.gemm)]
        return all(medians) and all(most) and self.wrong_signs == 0


def fit(measured: Sequence[Measured], machine: Machine) -> dict[str, float]:
    """The shares of a machine's peaks with which predictions are nearest to what was measured.

    Logarithms of ratios are fitted, parts beside totals, and large errors count less than in proportion.

    Args:
        measured: the points to make the model with.
        machine: where they were measured.
    """
    names = list(MEANING)
    start = np.log([MEANING[name][0] for name in names])

    def residuals(logs: np.ndarray) -> np.ndarray:
        shares = dict(zip(names, np.exp(logs), strict=True))
        found: list[float] = []
        for one in measured:
            predicted = predict(one.point, machine, one.entropy, shares)
            found.append(np.log(predicted.lookup_seconds / one.lookup))
            found.append(np.log(predicted.gemm_seconds / one.gemm))
            for parts, total in ((predicted.lookup, one.lookup), (predicted.gemm, one.gemm)):
                found += [_PART_WEIGHT * (parts[part] - one.parts[part]) / total for part in parts if part in one.parts]
        # what few points decide stays near its start
        return np.array(found + list(_START_WEIGHT * (logs - start)))

    solution = least_squares(
        residuals, start, bounds=(start - _LARGEST_CHANGE, start + _LARGEST_CHANGE), loss="soft_l1", f_scale=0.2
    )
    return dict(zip(names, map(float, np.exp(solution.x)), strict=True))


def predictions(
    measured: Sequence[Measured], machine: Machine, shares: Mapping[str, float] | None = None
) -> list[Prediction]:
    """What is predicted for each point."""
    return [predict(one.point, machine, one.entropy, shares) for one in measured]


def errors(measured: Sequence[Measured], predicted: Sequence[Prediction]) -> Errors:
    """How far predictions are off."""
    lookup = np.array([abs(p.lookup_seconds / m.lookup - 1) for m, p in zip(measured, predicted, strict=True)])
    gemm = np.array([abs(p.gemm_seconds / m.gemm - 1) for m, p in zip(measured, predicted, strict=True)])
    wrong = decided = 0
    for one, prediction in zip(measured, predicted, strict=True):
        ratio = one.gemm / one.lookup
        if abs(np.log(ratio)) > np.log(1 + SIGN_MARGIN):
            decided += 1
            wrong += (ratio > 1) != (prediction.ratio > 1)
    return Errors(len(measured), lookup, gemm, wrong, decided)


def report(name: str, found: Errors) -> str:
    """A few lines for a terminal."""
    lines = [f"{name}: {found.count} points"]
    for what, values in (("lookup", found.lookup), ("GEMM", found.gemm)):
        lines.append(
            f"  {what:<7} median error {np.median(values):.1%} (bar {MEDIAN_BAR:.0%}), nine of ten within "
            f"{np.quantile(values, 0.9):.1%} (bar {MOST_BAR:.0%}), largest {values.max():.0%}"
        )
    lines.append(f"  who is faster: {found.decided - found.wrong_signs} of {found.decided} right")
    return "\n".join(lines) + "\n"
