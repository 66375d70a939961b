"""Loss against tokens, L = E + A D^-beta, and where two such curves cross.

H: horizons, R: resamples of the seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# exponents that are looked at; published ones for language models lie between 0.05 and 0.6
_BETAS = np.geomspace(0.02, 2.0, 400)
# curves are followed to this many times the longest horizon
REACH = 100.0
RESAMPLES = 2000
FEWEST_HORIZONS = 3


@dataclass(frozen=True)
class PowerLaw:
    """L(D) = floor + scale * (D / unit)^-beta.

    Attributes:
        floor: E, nats at infinitely many tokens; not negative.
        scale: A, nats above it at ``unit`` tokens; not negative.
        beta: the exponent.
        unit: tokens, the geometric mean of the horizons.
    """

    floor: float
    scale: float
    beta: float
    unit: float

    def loss(self, tokens: Any) -> Any:
        """Nats after so many tokens; a number, or an array of them."""
        return self.floor + self.scale * (tokens / self.unit) ** -self.beta


@dataclass(frozen=True)
class Crossing:
    """Where one curve crosses another, from the shortest horizon to ``REACH`` times the longest.

    Attributes:
        tokens: of the last crossing; None where there is none.
        low, high: the middle 95% of the resamples that cross; None where fewer than half do.
        share: of the resamples that cross.
        ahead: whether the first curve is the lower one at the end of that range.
        ahead_share: of the resamples in which it is.
    """

    tokens: float | None
    low: float | None
    high: float | None
    share: float
    ahead: bool
    ahead_share: float


def fit(tokens: Sequence[float], losses: Sequence[float]) -> PowerLaw:
    """The power law with the least squared error.

    Args:
        tokens: [H] horizons, at least ``FEWEST_HORIZONS``.
        losses: [H] mean losses.
    """
    from scipy.optimize import minimize_scalar

    unit = float(np.exp(np.mean(np.log(tokens))))
    x, y = np.asarray(tokens, float) / unit, np.asarray(losses, float)[None]
    errors = _solve(x, y, _BETAS)[2][0]
    best = int(errors.argmin())
    low, high = _BETAS[max(best - 1, 0)], _BETAS[min(best + 1, len(_BETAS) - 1)]
    found = minimize_scalar(
        lambda beta: _solve(x, y, np.array([beta]))[2].item(), bounds=(low, high), method="bounded",
        options={"xatol": 1e-9},
    )  # fmt: skip
    floor, scale, _ = _solve(x, y, np.array([found.x]))
    return PowerLaw(floor.item(), scale.item(), float(found.x), unit)


def _solve(x: np.ndarray, y: np.ndarray, betas: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Floor, scale and squared error of the best fit with each exponent: [R, B] each.

    Args:
        x: [H] tokens over the unit.
        y: [R, H] losses.
        betas: [B].
    """
    power = x ** -betas[:, None]  # [B, H]
    centred = power - power.mean(1, keepdims=True)
    scale = y @ centred.T / (centred**2).sum(1)
    scale = np.maximum(scale, 0.0)
    floor = y.mean(1)[:, None] - scale * power.mean(1)
    negative = floor < 0
    through_zero = y @ power.T / (power**2).sum(1)
    scale, floor = np.where(negative, through_zero, scale), np.where(negative, 0.0, floor)
    errors = ((y[:, None] - floor[..., None] - scale[..., None] * power) ** 2).sum(-1)
    return floor, scale, errors


def crossing(tokens: Sequence[float], losses: np.ndarray, others: np.ndarray) -> Crossing:
    """Where the curve through one variant's losses crosses another's, and how sure that is.

    Seeds are resampled with replacement, the same for both variants and for all horizons of a resample.

    Args:
        tokens: [H] horizons.
        losses: [H, seeds] of the one.
        others: [H, seeds] of the other, seeds in the same order.
    """
    one, other = fit(tokens, losses.mean(1)), fit(tokens, others.mean(1))
    ends = float(min(tokens)), REACH * float(max(tokens))
    seeds = np.random.default_rng(0).integers(losses.shape[1], size=(RESAMPLES, losses.shape[1]))
    grid = np.geomspace(*ends, 400)
    apart = _resampled(tokens, losses[:, seeds], grid) - _resampled(tokens, others[:, seeds], grid)  # [R, grid]
    found = np.array([_last_change(grid, row) for row in apart])
    crossed = found[~np.isnan(found)]
    share = len(crossed) / RESAMPLES
    low, high = np.quantile(crossed, (0.025, 0.975)) if share >= 0.5 else (None, None)
    gap = one.loss(grid) - other.loss(grid)
    point = _last_change(grid, gap)
    return Crossing(
        None if np.isnan(point) else float(point), low if low is None else float(low),
        high if high is None else float(high), share, bool(gap[-1] < 0), float((apart[:, -1] < 0).mean()),
    )  # fmt: skip


def _resampled(tokens: Sequence[float], losses: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Fitted losses at the grid for each resample: [H, R, seeds] to [R, grid]."""
    unit = float(np.exp(np.mean(np.log(tokens))))
    floor, scale, errors = _solve(np.asarray(tokens, float) / unit, losses.mean(-1).T, _BETAS)
    best = errors.argmin(1)
    rows = np.arange(len(best))
    return floor[rows, best, None] + scale[rows, best, None] * (grid / unit) ** -_BETAS[best, None]


def _last_change(grid: np.ndarray, gap: np.ndarray) -> float:
    """The last place where the gap changes its sign, NaN where it never does."""
    changes = np.flatnonzero(np.signbit(gap[1:]) != np.signbit(gap[:-1]))
    if not len(changes):
        return float("nan")
    i = changes[-1]
    share = gap[i] / (gap[i] - gap[i + 1])
    return float(grid[i] * (grid[i + 1] / grid[i]) ** share)
