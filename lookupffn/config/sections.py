"""The numbers of a run, checked before anything is prepared or built."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

from lookupffn.errors import UserError, unknown_name

PRECISIONS = ("fp32", "bf16", "fp16")
SCHEDULES = ("linear", "cosine")
BUDGETS = ("max_tokens", "max_flops", "max_minutes")


@dataclass(frozen=True)
class Budget:
    """How long to train.

    Attributes:
        unit: "steps", "tokens", "flops" (training FLOPs) or "minutes" (time spent in training steps).
        amount: how many of them.
    """

    unit: str
    amount: float

    def steps(self, tokens_per_step: int, training_flops_per_token: float) -> int | None:
        """Optimizer steps that fill the budget, the last one rounded up; None where only the clock knows."""
        if self.unit == "minutes":
            return None
        per_step = {"steps": 1, "tokens": tokens_per_step, "flops": tokens_per_step * training_flops_per_token}
        return max(1, math.ceil(self.amount / per_step[self.unit]))


@dataclass(frozen=True)
class TrainingSettings:
    """The `training` section of the config."""

    batch_size: int
    max_steps: int | None
    max_tokens: float | None
    max_flops: float | None
    max_minutes: float | None
    gradient_accumulation_steps: int
    micro_batches: int | None
    precision: str
    compile: bool
    log_every: int
    validate_every: int
    validate_tokens: int | None
    checkpoint_every: int
    keep_checkpoints: int
    keep_best: bool
    skip_nonfinite: int
    num_workers: int

    def accumulation(self, world_size: int) -> int:
        """Micro-batches of a step on each process."""
        return self.gradient_accumulation_steps if self.micro_batches is None else self.micro_batches // world_size

    @property
    def budget(self) -> Budget:
        """The one budget that counts."""
        for name in BUDGETS:
            if getattr(self, name) is not None:
                return Budget(name.removeprefix("max_"), getattr(self, name))
        return Budget("steps", self.max_steps)


@dataclass(frozen=True)
class OptimizerSettings:
    """The `optimizer` section of the config, without its name."""

    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    schedule: str
    warmup_steps: int | None
    warmup_ratio: float | None
    tables_lr_scale: float
    tables_weight_decay: float | None
    hash_lr_scale: float
    hash_weight_decay: float | None
    max_grad_norm: float | None


def training_settings(section: Mapping[str, Any], world_size: int) -> TrainingSettings:
    """The training section, checked.

    Args:
        section: the resolved config section.
        world_size: number of processes the batch is divided among.

    Raises:
        UserError: a value that cannot be.
    """
    settings = TrainingSettings(**_typed("training", section, TrainingSettings))
    given = [name for name in BUDGETS if getattr(settings, name) is not None]
    if len(given) > 1:
        raise UserError(f"training: {' and '.join(given)} are both set; a budget is stated in one of them")
    if not given and settings.max_steps is None:
        raise UserError("training: no budget; set max_steps, max_tokens, max_flops or max_minutes")
    for name in ("batch_size", "gradient_accumulation_steps", "log_every", "validate_every", "checkpoint_every"):
        _require(getattr(settings, name) >= 1, "training", name, getattr(settings, name), "at least 1")
    for name in ("max_steps", "validate_tokens", *BUDGETS):
        value = getattr(settings, name)
        _require(value is None or (value > 0 and math.isfinite(value)), "training", name, value, "above 0")
    _require(settings.keep_checkpoints >= 1, "training", "keep_checkpoints", settings.keep_checkpoints, "at least 1")
    for name in ("num_workers", "skip_nonfinite"):
        _require(getattr(settings, name) >= 0, "training", name, getattr(settings, name), "0 or more")
    if settings.precision not in PRECISIONS:
        raise unknown_name("training.precision", settings.precision, PRECISIONS)
    parts, fixed = world_size * settings.gradient_accumulation_steps, settings.micro_batches
    if fixed is not None:
        _require(fixed >= 1, "training", "micro_batches", fixed, "at least 1 (null: as many as there are)")
        if settings.gradient_accumulation_steps != 1:
            raise UserError("training: micro_batches and gradient_accumulation_steps are both set; leave one out")
        if settings.batch_size % fixed or fixed % world_size:
            raise UserError(
                f"training.micro_batches={fixed} must divide batch_size={settings.batch_size} and be a multiple of the "
                f"{world_size} processes"
            )
    if settings.batch_size % parts:
        raise UserError(
            f"training.batch_size={settings.batch_size} is not divisible by {parts} "
            f"({world_size} processes x {settings.gradient_accumulation_steps} accumulation steps)"
        )
    return settings


def optimizer_settings(section: Mapping[str, Any]) -> OptimizerSettings:
    """The optimizer section, checked.

    Raises:
        UserError: a value that cannot be.
    """
    values = dict(section)
    name = values.pop("name", "adamw")
    if name != "adamw":
        raise unknown_name("optimizer.name", name, ["adamw"])
    betas = values.get("betas")
    if not (isinstance(betas, list | tuple) and len(betas) == 2 and all(_is_number(b) and 0 <= b < 1 for b in betas)):
        raise UserError(f"optimizer.betas must be two numbers from 0 to below 1, not {betas!r}")
    values["betas"] = tuple(betas)
    settings = OptimizerSettings(**_typed("optimizer", values, OptimizerSettings))
    if settings.schedule not in SCHEDULES:
        raise unknown_name("optimizer.schedule", settings.schedule, SCHEDULES)
    _require(settings.lr > 0 and math.isfinite(settings.lr), "optimizer", "lr", settings.lr, "above 0")
    _require(settings.eps > 0, "optimizer", "eps", settings.eps, "above 0")
    for name in ("weight_decay", "tables_weight_decay", "hash_weight_decay"):
        value = getattr(settings, name)
        _require(value is None or value >= 0, "optimizer", name, value, "0 or more")
    for name in ("tables_lr_scale", "hash_lr_scale"):
        _require(getattr(settings, name) > 0, "optimizer", name, getattr(settings, name), "above 0")
    ratio, steps, clip = settings.warmup_ratio, settings.warmup_steps, settings.max_grad_norm
    _require(ratio is None or 0 <= ratio < 1, "optimizer", "warmup_ratio", ratio, "from 0 to below 1")
    _require(steps is None or steps >= 0, "optimizer", "warmup_steps", steps, "0 or more")
    _require(clip is None or clip > 0, "optimizer", "max_grad_norm", clip, "above 0 (null: no clipping)")
    return settings


def evaluation_settings(section: Mapping[str, Any]) -> tuple[int, int | None]:
    """(batch_size, max_tokens) of the evaluation section, checked.

    Raises:
        UserError: a value that cannot be.
    """
    batch_size, max_tokens = section.get("batch_size"), section.get("max_tokens")
    for name, value in (("batch_size", batch_size), ("max_tokens", max_tokens)):
        optional = name == "max_tokens" and value is None
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        _require(optional or whole, "evaluation", name, value, "a whole number of at least 1")
    return batch_size, max_tokens


def _typed(section: str, values: Mapping[str, Any], cls: type) -> dict[str, Any]:
    """The fields of ``cls`` from a config section, each of the type it declares."""
    hints = get_type_hints(cls)
    names = [field.name for field in fields(cls)]
    for name in values:
        if name not in names and name != "name":
            raise unknown_name(f"option of {section}", name, names)
    checked = {}
    for name in names:
        value, hint = values.get(name), hints[name]
        kinds = getattr(hint, "__args__", None) if getattr(hint, "__origin__", None) is None else (tuple,)
        kinds = kinds or (hint,)
        if value is None and type(None) in kinds:
            checked[name] = None
        elif float in kinds and _is_number(value):
            checked[name] = float(value)
        # 1e3 is a float to YAML and a whole number to a person
        elif int in kinds and _is_number(value) and float(value).is_integer():
            checked[name] = int(value)
        elif isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool)):
            checked[name] = value
        else:
            wanted = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
            raise UserError(f"{section}.{name} must be {wanted}, not {value!r}")
    return checked


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _require(condition: bool, section: str, name: str, value: object, wanted: str) -> None:
    if not condition:
        raise UserError(f"{section}.{name} must be {wanted}, not {value!r}")
