"""How long a run trains: its budget, and a clock that separates steps from validations and checkpoints."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator

from lookupffn.config.sections import BUDGETS, TrainingSettings
from lookupffn.cost import TRAINING_MULTIPLE
from lookupffn.distributed.processes import broadcast
from lookupffn.objectives import Objective

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Budget:
    """How long to train.

    Attributes:
        unit: "steps", "epochs", "tokens", "flops" (training FLOPs) or "minutes" (time spent in training steps).
        amount: how many of them.
    """

    unit: str
    amount: float

    def steps(self, tokens_per_step: float, training_flops_per_token: float, steps_per_epoch: float) -> int | None:
        """Optimizer steps that fill the budget, the last one rounded up; None where only the clock knows."""
        if self.unit == "minutes":
            return None
        per_step = {
            "steps": 1.0,
            "epochs": 1.0 / steps_per_epoch,
            "tokens": tokens_per_step,
            "flops": tokens_per_step * training_flops_per_token,
        }
        # an epoch of 0.1 * 30 steps is 3 of them, not 4
        return max(1, math.ceil(round(self.amount / per_step[self.unit], 6)))


class Clock:
    """Seconds spent in training steps, over all sessions of a run; monotonic.

    Attributes:
        aside: seconds of what it was paused for, by name.
    """

    def __init__(self, before: float, aside: Mapping[str, float] | None = None) -> None:
        """``before`` and ``aside``: seconds of earlier sessions."""
        self._total = before
        self._since: float | None = None
        self.aside = dict(aside or {})

    def start(self) -> None:
        """Counts from now."""
        self._since = time.perf_counter()

    def stop(self) -> None:
        """Counts until now."""
        self._total, self._since = self.seconds(), None

    def seconds(self) -> float:
        """Counted so far."""
        return self._total + (0.0 if self._since is None else time.perf_counter() - self._since)

    @contextmanager
    def paused(self, what: str) -> Iterator[None]:
        """Counts the time inside the block separately, under a name."""
        self.stop()
        began = time.perf_counter()
        try:
            yield
        finally:
            self.aside[what] = self.aside.get(what, 0.0) + time.perf_counter() - began
            self.start()


def budget_progress(accelerator: Accelerator, budget: Budget, clock: Clock) -> float:
    """How much of a budget of minutes is used up, by the main process's clock; 0 for other budgets."""
    if budget.unit != "minutes":
        return 0.0
    return broadcast(accelerator, min(1.0, clock.seconds() / (60.0 * budget.amount)))


def choose_budget(settings: TrainingSettings, objective: Objective) -> Budget:
    """The budget that ends the run: the one that is set, or max_steps where it comes before max_epochs."""
    # at most one is set, beside max_steps
    name = next((name for name in BUDGETS if getattr(settings, name) is not None), "max_steps")
    most, epochs = settings.max_steps, settings.max_epochs
    if most is not None and epochs is not None and most < epochs * objective.steps_per_epoch:
        logger.info("training.max_steps=%d comes before training.max_epochs=%g", most, epochs)
        return Budget("steps", most)
    return Budget(name.removeprefix("max_"), getattr(settings, name))


def training_flops_per_token(costs: Mapping[str, Any]) -> float:
    """Forward and backward, as in ``lookupffn.cost``."""
    return TRAINING_MULTIPLE * costs["model_flops_per_token"]
