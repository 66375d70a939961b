"""What the curves of runs say beyond their last value: the training loss, runs that fall off, means over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lookupffn.report.runs import Run, Validation

# the training loss of a run is its mean over this last share of its tokens
LAST_SHARE = 0.1
# nats behind its siblings, after half of its tokens, from which on a run has fallen off
FALL_OFF = 0.1


def training_loss(run: Run) -> float | None:
    """Mean of the training losses logged over the last tenth of the tokens, in nats; None where none was logged.

    Runs of one seed train on the same batches, so between them its noise cancels for the most part.
    """
    start = (1 - LAST_SHARE) * run.summary["tokens"]
    losses = [line.loss for line in run.training if line.tokens > start]
    return statistics.fmean(losses) if losses else None


def validation_loss(run: Run, tokens: float) -> float | None:
    """Validation loss after so many tokens, between two validations by interpolation; None outside of them."""
    if not run.curve or not run.curve[0].tokens <= tokens <= run.curve[-1].tokens:
        return None
    return float(np.interp(tokens, [point.tokens for point in run.curve], [point.loss for point in run.curve]))


def fallen_off(runs: Sequence[Run]) -> list[Run] | None:
    """The runs that are more than ``FALL_OFF`` nats behind the median of the others after half of their tokens.

    Args:
        runs: of one variant.

    Returns:
        None where fewer than two can be told.
    """
    losses = {run.seed: validation_loss(run, run.summary["tokens"] / 2) for run in runs}
    losses = {seed: loss for seed, loss in losses.items() if loss is not None}
    if len(losses) < 2:
        return None
    found = []
    for run in runs:
        others = [loss for seed, loss in losses.items() if seed != run.seed]
        if run.seed in losses and losses[run.seed] - statistics.median(others) > FALL_OFF:
            found.append(run)
    return found


@dataclass(frozen=True)
class MeanCurve:
    """Validations over the seeds of a variant.

    Attributes:
        x: [N] tokens or FLOPs.
        mean: [N] mean over seeds.
        std: [N] sample standard deviation; None with one seed.
    """

    x: np.ndarray
    mean: np.ndarray
    std: np.ndarray | None


def mean_validation(
    runs: Sequence[Run], across: Callable[[Validation], float], up: Callable[[float], float]
) -> MeanCurve | None:
    """The mean of validation curves; None where no run has validated.

    Args:
        runs: of one variant.
        across: what a point's x is.
        up: what becomes of a loss.
    """
    curves = [run.curve for run in runs if run.curve]
    if not curves:
        return None
    x = np.array([across(point) for point in min(curves, key=len)])
    values = [np.interp(x, [across(p) for p in curve], [up(p.loss) for p in curve]) for curve in curves]
    return _mean(x, np.array(values))


def mean_training(runs: Sequence[Run], points: int = 40) -> MeanCurve | None:
    """The mean of training losses against tokens, from the first line that was logged; None where none was.

    Args:
        runs: of one variant.
        points: how many, each a mean over its share of the run, for single batches are noisy.
    """
    curves = [run.training for run in runs if run.training]
    if not curves:
        return None
    x = np.array([line.tokens for line in min(curves, key=len)])
    values = [np.interp(x, [line.tokens for line in curve], [line.loss for line in curve]) for curve in curves]
    starts = np.unique(np.linspace(1, len(x), min(points, len(x)), dtype=int))[:-1]
    # the first line alone, then equal shares
    counts = np.diff([0, *starts, len(x)])
    means = [np.add.reduceat(row, [0, *starts]) / counts for row in (x, *values)]
    return _mean(means[0], np.array(means[1:]))


def _mean(x: np.ndarray, values: np.ndarray) -> MeanCurve:
    return MeanCurve(x, values.mean(0), values.std(0, ddof=1) if len(values) > 1 else None)
