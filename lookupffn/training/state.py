"""What a run has done so far: the record that each checkpoint holds, and the point a run resumes from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Self, TypedDict, get_args, get_origin, get_type_hints, is_typeddict

from accelerate import Accelerator

from lookupffn.distributed.sharding import load_full_state
from lookupffn.errors import UserError
from lookupffn.runs.checkpoint import METADATA_FILE, load_state, newest_checkpoint, remove_partial
from lookupffn.runs.names import CHECKPOINTS
from lookupffn.training.budget import Budget
from lookupffn.training.optimizer import check_state

_LARGEST = 1e300


class Best(TypedDict):
    """The best validation so far."""

    step: int
    validation_loss: float


class Line(TypedDict):
    """What a line of metrics.jsonl has at least; a mean over no losses is null in JSON."""

    step: int
    loss: float | None
    learning_rate: float
    tokens_per_s: float


class SessionBudget(TypedDict):
    """What a session was to train for."""

    unit: str
    amount: float
    from_step: int


@dataclass
class TrainState:
    """The record of a run; checkpoint.json has these fields.

    Attributes:
        step: optimizer steps done.
        tokens: trained on.
        training_flops_per_token: what the run's budget and its metrics count with. Some feed-forwards measure their
            cost as they run, so a run keeps the figure it began with.
        recent_losses: of the steps since the last line of metrics.jsonl.
        unvalidated: a line of metrics.jsonl whose validation was interrupted.
        skipped_steps: steps whose batch was left out.
        skipped_in_a_row: how many of them were the last ones.
        best: the best validation.
        training_s: seconds in training steps.
        aside_s: seconds in validations and checkpoints, by name.
        wall_clock_s: seconds in all, over all sessions.
        budgets: what the run was to train for; another one for each session that resumed it with another budget.
    """

    step: int = 0
    tokens: int = 0
    training_flops_per_token: float | None = None
    recent_losses: list[float] = field(default_factory=list)
    unvalidated: dict[str, Any] | None = None
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    best: Best | None = None
    training_s: float = 0.0
    aside_s: dict[str, float] = field(default_factory=dict)
    wall_clock_s: float = 0.0
    budgets: list[SessionBudget] = field(default_factory=list)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """From a checkpoint's record; what an earlier version did not note is as at the start.

        Raises:
            UserError: a field is of another type than this class writes, or a negative number.
        """
        types = get_type_hints(cls) | {"unvalidated": Line | None}
        values = {known.name: record[known.name] for known in fields(cls) if known.name in record}
        for name, value in values.items():
            if not _fits(value, types[name]):
                raise UserError(f"damaged checkpoint: {name} in its {METADATA_FILE} is not what a training writes")
        state = cls(**values)
        if state.unvalidated is not None and state.unvalidated["loss"] is None:
            state.unvalidated["loss"] = math.nan
        return state

    def record(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)

    def set_budget(self, budget: Budget, *, exceeded: bool) -> None:
        """Notes what this session trains for.

        Args:
            budget: of the session.
            exceeded: whether the run has trained for longer already.

        Raises:
            UserError: it has, and the budget is not the one it trained for.
        """
        unit, amount = budget.unit, budget.amount
        same = bool(self.budgets) and (self.budgets[-1]["unit"], self.budgets[-1]["amount"]) == (unit, amount)
        if exceeded and not same:
            raise UserError(
                f"the run has trained for more than training.max_{unit}={amount:g} already ({self.step} steps, "
                f"{self.tokens} tokens, {self.training_s / 60:.1f} minutes): give a larger budget or another output_dir"
            )
        if not same:
            self.budgets.append({"unit": unit, "amount": amount, "from_step": self.step})

    def mean_loss(self) -> float:
        """Of ``recent_losses``; NaN where there are none."""
        # fsum does not depend on how the losses were grouped, so an interruption does not show
        return math.fsum(self.recent_losses) / len(self.recent_losses) if self.recent_losses else math.nan

    def improve(self, validation_loss: float) -> bool:
        """Notes a validation; whether it is the best so far."""
        if self.best is not None and validation_loss >= self.best["validation_loss"]:
            return False
        self.best = {"step": self.step, "validation_loss": validation_loss}
        return True


def _fits(value: Any, kind: Any) -> bool:
    """Whether a JSON value is of a type; numbers are finite and not negative."""
    origin, of = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return any(_fits(value, member) for member in of)
    if origin is list:
        return isinstance(value, list) and all(_fits(one, of[0]) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(one, of[1]) for one in value.values())
    if is_typeddict(kind):
        members = get_type_hints(kind)
        return isinstance(value, dict) and all(name in value and _fits(value[name], members[name]) for name in members)
    if kind in (int, float):
        number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
        return number and 0 <= value <= _LARGEST
    return isinstance(value, NoneType if kind is NoneType else kind)


def resume_point(folder: Path, fingerprints: Mapping[str, str]) -> tuple[Path | None, dict[str, Any]]:
    """The checkpoint to resume from and its record, (None, {}) for a new run.

    Args:
        folder: of the run; what a killed run left half-written in it is removed.
        fingerprints: of the objective; they must be those that the run began with.

    Raises:
        UserError: every checkpoint is damaged, or the data is not what the run began with.
    """
    for place in (folder, folder / CHECKPOINTS):
        remove_partial(place)
    found = newest_checkpoint(folder / CHECKPOINTS)
    if found is None:
        return None, {}
    for name, value in fingerprints.items():
        if found[1].get(name) != value:
            raise UserError(
                f"{folder}: the {name.removesuffix('_fingerprint')} is not what this run started with (its files or "
                "packages have changed): start a new run with another output_dir"
            )
    return found


def restore(checkpoint: Path, optimizer: Any, accelerator: Accelerator) -> None:
    """Loads the optimizer's and the gradient scaler's state from a checkpoint.

    Raises:
        UserError: it is damaged, or that of another model.
    """
    state = load_state(checkpoint)
    check_state(optimizer, state["optimizer"])
    load_full_state(optimizer, state["optimizer"])
    if accelerator.scaler is not None and state["scaler"] is not None:
        accelerator.scaler.load_state_dict(state["scaler"])
