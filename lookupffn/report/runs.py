"""Finished runs as a comparison sees them, made of summary.json, metrics.jsonl and config.yaml.

Nothing here trusts a file: what is damaged is named in one line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lookupffn.errors import UserError
from lookupffn.runs.names import CONFIG, METRICS, SUMMARY
from lookupffn.runs.records import flatten, read_config, read_metrics, read_summary, run_folders

_NUMBERS = (
    "steps",
    "tokens",
    "validation_loss",
    "unigram_loss",
    "masked_validation_tokens",
    "ffn_flops_per_token",
    "gemm_ffn_flops_per_token",
    "ffn_parameters",
    "parameters",
    "tokens_per_s",
)
_TEXTS = ("ffn", "model", "data", "data_fingerprint", "tokenizer_fingerprint")
# numbers that runs of earlier versions do not have, or that a run may have left open
_OPTIONAL = ("plateau_exit_step", "second_fall_step", "ffn_parameters_touched", "parameters_touched")
# settings of the training section that change what is learned from the same tokens
_TRAINING = ("batch_size", "precision")
# parameters whose rate and decay the optimizer sets apart, and who has them where summary.json does not say
_ROLES = ("tables", "hash")
_ROLES_OF_OLDER_RUNS = {
    **dict.fromkeys(("gemm", "low_rank", "none", "shuffle", "fff", "slide", "yoso"), ()),
    **dict.fromkeys(("switch", "mongoose"), ("hash",)),
}


@dataclass(frozen=True)
class Validation:
    """One validation on the way.

    Attributes:
        tokens: trained on so far.
        training_flops: spent so far.
        loss: of the masked validation tokens, in nats.
    """

    tokens: float
    training_flops: float
    loss: float


@dataclass(frozen=True)
class Logged:
    """The training loss of one line of metrics.jsonl.

    Attributes:
        tokens: trained on so far.
        loss: mean over the steps since the line before, in nats a masked token.
    """

    tokens: float
    loss: float


@dataclass(frozen=True)
class Run:
    """A finished pretraining run.

    Attributes:
        path: its folder.
        summary: summary.json.
        conditions: what it must share with any run that it is compared with (see ``groups``), by name.
        settings: what makes its variant: "ffn.num_tables", "optimizer.lr", ...; what is null is left out.
        curve: its validations, in the order of training.
        training: its training losses, in the order of training.
    """

    path: Path
    summary: Mapping[str, Any]
    conditions: Mapping[str, Any]
    settings: Mapping[str, Any]
    curve: tuple[Validation, ...]
    training: tuple[Logged, ...]

    @property
    def ffn(self) -> str:
        """The feed-forward's name."""
        return self.summary["ffn"]

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.summary["seed"]

    @property
    def loss(self) -> float:
        """Final validation loss, in nats."""
        return self.summary["validation_loss"]

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return perplexity(self.loss)

    def tokens_at(self, key: str) -> float | None:
        """Tokens trained on at a step that the summary names ("plateau_exit_step"); None where it names none."""
        step = self.summary.get(key)
        return None if step is None else step * self.summary["tokens"] / self.summary["steps"]


@dataclass(frozen=True)
class LeftOut:
    """A folder that is in no comparison, and why."""

    path: Path
    why: str


@dataclass(frozen=True)
class Found:
    """What some folders hold, each in the order of the paths.

    Attributes:
        runs: finished pretraining runs.
        left_out: unfinished and diverged ones.
        fine_tuned: finished fine-tuning runs: folder and summary.json of each.
    """

    runs: list[Run]
    left_out: list[LeftOut]
    fine_tuned: list[tuple[Path, dict[str, Any]]]


def perplexity(loss: float) -> float:
    """exp(loss), infinite where a float cannot hold it."""
    return math.exp(loss) if loss < 700 else math.inf


def find_runs(paths: Iterable[Path]) -> Found:
    """Every run in some folders.

    Args:
        paths: run folders, or folders that hold run folders at any depth.

    Raises:
        UserError: a folder does not exist, a file of a finished run is damaged, or no run is finished.
    """
    paths = list(paths)
    found = Found([], [], [])
    for folder in run_folders(paths):
        if not (folder / SUMMARY).exists():
            found.left_out.append(LeftOut(folder, _how_far(folder)))
            continue
        summary = read_summary(folder)
        if summary.get("task") is not None:
            found.fine_tuned.append((folder, summary))
            continue
        run = read_run(folder, summary)
        if math.isinf(run.perplexity):
            found.left_out.append(LeftOut(folder, f"diverged to a loss of {run.loss:.3g} nats"))
        else:
            found.runs.append(run)
    if not found.runs and not found.fine_tuned:
        unfinished = f" ({len(found.left_out)} unfinished or diverged)" if found.left_out else ""
        raise UserError(f"no finished run in {', '.join(map(str, paths))}{unfinished}: a finished one has a {SUMMARY}")
    return found


def _how_far(folder: Path) -> str:
    """What an unfinished run has done, as far as its last whole line says."""
    lines = read_metrics(folder)
    return f"unfinished, at step {lines[-1]['step']:,}" if lines else "unfinished, no step logged"


def read_run(folder: Path, summary: Mapping[str, Any] | None = None) -> Run:
    """A finished pretraining run.

    Args:
        folder: of the run.
        summary: its summary.json where it has been read.

    Raises:
        UserError: a file of it is missing or damaged.
    """
    summary = read_summary(folder) if summary is None else summary
    _check_summary(summary, folder / SUMMARY)
    config = read_config(folder)
    for section in ("model", "data", "optimizer", "training"):
        if not isinstance(config.get(section), dict):
            raise UserError(f"damaged file {folder / CONFIG}: it has no {section} section")
    model, data = config["model"], config["data"]
    conditions = {
        "data_fingerprint": summary["data_fingerprint"],
        "tokenizer_fingerprint": summary["tokenizer_fingerprint"],
        "mask_rate": data.get("mask_rate"),
        "masked_validation_tokens": summary["masked_validation_tokens"],
        "sequence_length": data.get("sequence_length"),
        **{f"model.{key}": value for key, value in model.items() if key not in ("name", "sequence_length")},
        "init_from": config.get("init_from"),
        "tokens": summary["tokens"],
    }
    settings = {
        **{f"ffn.{key}": value for key, value in summary["ffn_options"].items()},
        **{f"optimizer.{key}": value for key, value in optimizer_settings(summary, config["optimizer"]).items()},
        **{f"training.{key}": config["training"].get(key) for key in _TRAINING},
    }
    curve, training = _curves(folder)
    return Run(folder, summary, stated(flat(conditions)), stated(flat(settings)), curve, training)


def optimizer_settings(summary: Mapping[str, Any], optimizer: Mapping[str, Any]) -> dict[str, Any]:
    """Without the optimizer's name, and without rates and decay of what the feed-forward does not have."""
    roles = summary.get("ffn_parameter_roles")
    if not isinstance(roles, list | dict):
        roles = _ROLES_OF_OLDER_RUNS.get(summary["ffn"], _ROLES)
    absent = tuple(f"{role}_" for role in _ROLES if role not in roles)
    return {key: value for key, value in flat(optimizer).items() if key != "name" and not key.startswith(absent)}


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Every value of nested mappings by its dotted key, lists as tuples, so that all are hashable."""
    return {key: _hashable(value) for key, value in flatten(values)}


def _hashable(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(_hashable, value))
    return json.dumps(value, sort_keys=True, default=str) if isinstance(value, Mapping) else value


def stated(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without nulls: a run older than a setting does not differ from one that leaves it open."""
    return {key: value for key, value in values.items() if value is not None}


def check_numbers(summary: Mapping[str, Any], path: Path, names: Sequence[str]) -> None:
    """Raises a UserError where one of the named values is not a finite number."""
    for name in names:
        if not is_number(summary.get(name)):
            raise UserError(f"damaged file {path}: {name} is {summary.get(name)!r}, not a number")


def check_texts(summary: Mapping[str, Any], path: Path, names: Sequence[str]) -> None:
    """Raises a UserError where one of the named values is not text."""
    for name in names:
        if not isinstance(summary.get(name), str):
            raise UserError(f"damaged file {path}: {name} is {summary.get(name)!r}, not text")


def check_identity(summary: Mapping[str, Any], path: Path) -> None:
    """Raises a UserError where the seed or the feed-forward's options cannot be."""
    if not isinstance(summary.get("seed"), int):
        raise UserError(f"damaged file {path}: seed is {summary.get('seed')!r}, not an integer")
    if not isinstance(summary.get("ffn_options"), dict):
        raise UserError(f"damaged file {path}: ffn_options is not an object")


def _check_summary(summary: Mapping[str, Any], path: Path) -> None:
    check_texts(summary, path, _TEXTS)
    check_numbers(summary, path, _NUMBERS)
    check_numbers(summary, path, [name for name in _OPTIONAL if summary.get(name) is not None])
    check_identity(summary, path)
    if summary["steps"] <= 0 or summary["tokens"] <= 0:
        raise UserError(f"damaged file {path}: steps or tokens cannot be")
    if not isinstance(summary.get("statistics") or {}, dict):
        raise UserError(f"damaged file {path}: statistics is not an object")


def is_number(value: object) -> bool:
    """Whether a value from a file is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _curves(folder: Path) -> tuple[tuple[Validation, ...], tuple[Logged, ...]]:
    """What metrics.jsonl says of validation and of training."""
    curve, training = [], []
    for line in read_metrics(folder, strict=True):
        tokens, flops = line.get("tokens"), line.get("training_flops")
        losses = [line[key] for key in ("validation_loss", "loss") if line.get(key) is not None]
        if not all(map(is_number, (tokens, flops, *losses))):
            raise UserError(f"damaged file {folder / METRICS}: step {line['step']} holds something that is no number")
        if line.get("validation_loss") is not None:
            curve.append(Validation(tokens, flops, line["validation_loss"]))
        if line.get("loss") is not None:  # null where it was not finite
            training.append(Logged(tokens, line["loss"]))
    return tuple(curve), tuple(training)
