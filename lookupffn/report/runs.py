"""Finished runs, as their folders tell them: summary.json, metrics.jsonl and config.yaml, nothing else.

Nothing here trusts a file: YAML is read as plain data, and what is damaged is named in one line.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import yaml

from lookupffn.errors import UserError
from lookupffn.layers import ROLES, build_ffn, ffn_names

SUMMARY, CONFIG, METRICS = "summary.json", "config.yaml", "metrics.jsonl"
# folders of a run that hold no other runs
_INNER = ("checkpoints", "model", "wandb")
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
_OPTIONAL = ("plateau_exit_step", "ffn_parameters_touched", "parameters_touched")
# settings of the training section that change what is learned from the same tokens
_TRAINING = ("batch_size", "precision")


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
class Run:
    """A finished run.

    Attributes:
        path: its folder.
        summary: summary.json.
        conditions: what it must share with any run that it is compared with (see ``groups``), by name.
        settings: what makes its variant: "ffn.num_tables", "optimizer.lr", ...; what is null is left out.
        curve: its validations, in the order of training.
    """

    path: Path
    summary: Mapping[str, Any]
    conditions: Mapping[str, Any]
    settings: Mapping[str, Any]
    curve: tuple[Validation, ...]

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

    @property
    def plateau_exit_tokens(self) -> float | None:
        """Tokens trained on when the plateau was left; None where it never was."""
        step = self.summary.get("plateau_exit_step")
        return None if step is None else step * self.summary["tokens"] / self.summary["steps"]


@dataclass(frozen=True)
class LeftOut:
    """A folder that is in no comparison, and why."""

    path: Path
    why: str


def perplexity(loss: float) -> float:
    """exp(loss), infinite where a float cannot hold it."""
    return math.exp(loss) if loss < 700 else math.inf


def find_runs(paths: Iterable[Path]) -> tuple[list[Run], list[LeftOut]]:
    """Every finished run in some folders, and the unfinished ones.

    Args:
        paths: run folders, or folders that hold run folders at any depth.

    Returns:
        Both in the order of their paths.

    Raises:
        UserError: a folder does not exist, a file of a finished run is damaged, or no run is finished.
    """
    folders: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            raise UserError(f"no folder {path}: give run folders, or folders that hold some")
        for folder in _run_folders(path):
            folders.setdefault(folder.resolve(), folder)
    runs, left_out = [], []
    for folder in sorted(folders.values(), key=str):
        if not (folder / SUMMARY).exists():
            left_out.append(LeftOut(folder, _how_far(folder)))
        elif math.isinf((run := read_run(folder)).perplexity):
            left_out.append(LeftOut(folder, f"diverged to a loss of {run.loss:.3g} nats"))
        else:
            runs.append(run)
    if not runs:
        unfinished = f" ({len(left_out)} unfinished or diverged)" if left_out else ""
        raise UserError(f"no finished run in {', '.join(map(str, paths))}{unfinished}: a finished one has a {SUMMARY}")
    return runs, left_out


def _run_folders(top: Path) -> Iterator[Path]:
    """Folders that hold a run, finished or begun."""
    for name, inner, files in os.walk(top, onerror=_refuse):
        begun = CONFIG in files and (METRICS in files or ".lock" in files or "checkpoints" in inner)
        if SUMMARY in files or begun:
            yield Path(name)
        inner[:] = sorted(i for i in inner if i not in _INNER and not i.startswith("."))


def _refuse(error: OSError) -> NoReturn:
    raise UserError(f"cannot read {error.filename}: {error.strerror}")


def _how_far(folder: Path) -> str:
    """What an unfinished run has done, as far as its last whole line says."""
    try:
        lines = (folder / METRICS).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for text in reversed(lines):
        try:
            return f"unfinished, at step {int(json.loads(text)['step']):,}"
        except (ValueError, KeyError, TypeError):  # cut short: it is being written
            continue
    return "unfinished, no step logged"


def read_run(folder: Path) -> Run:
    """A finished run.

    Raises:
        UserError: a file of it is missing or damaged.
    """
    summary = read_json(folder / SUMMARY)
    _check_summary(summary, folder / SUMMARY)
    config = _read_config(folder / CONFIG)
    model, data = config["model"], config["data"]
    conditions = {
        "data_fingerprint": summary["data_fingerprint"],
        "tokenizer_fingerprint": summary["tokenizer_fingerprint"],
        "mask_rate": data.get("mask_rate"),
        "masked_validation_tokens": summary["masked_validation_tokens"],
        "sequence_length": data.get("sequence_length"),
        **{f"model.{key}": value for key, value in flatten(model) if key not in ("name", "sequence_length")},
        "init_from": config.get("init_from"),
        "tokens": summary["tokens"],
    }
    settings = {
        **{f"ffn.{key}": value for key, value in flatten(summary["ffn_options"])},
        **{f"optimizer.{key}": value for key, value in _effective(summary["ffn"], flatten(config["optimizer"]))},
        **{f"training.{key}": config["training"].get(key) for key in _TRAINING},
    }
    curve = tuple(_validations(folder / METRICS))
    return Run(folder, summary, _stated(conditions), _stated(settings), curve)


def _effective(ffn: str, optimizer: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Without the optimizer's name, and without rates and decay of what a feed-forward does not have."""
    absent = _absent_roles(ffn)
    return ((key, value) for key, value in optimizer if key != "name" and not key.startswith(absent))


@cache
def _absent_roles(ffn: str) -> tuple[str, ...]:
    """("tables_", "hash_") for gemm."""
    if ffn not in ffn_names():  # somebody's own
        return ()
    roles = build_ffn(ffn, hidden_size=32).parameter_roles()
    return tuple(f"{role}_" for role in ROLES if not roles.get(role))


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("betas", (0.9, 0.98)), ... for every value of nested mappings, lists as tuples."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _hashable(value)


def _hashable(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(_hashable, value))
    return json.dumps(value, sort_keys=True, default=str) if isinstance(value, Mapping) else value


def _stated(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without nulls: a run older than a setting does not differ from one that leaves it open."""
    return {key: value for key, value in values.items() if value is not None}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    try:
        value = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"damaged file {path}: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"damaged file {path}: not a JSON object")
    return value


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"damaged file {path}: not text") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _check_summary(summary: Mapping[str, Any], path: Path) -> None:
    for name in _TEXTS:
        if not isinstance(summary.get(name), str):
            raise UserError(f"damaged file {path}: {name} is {summary.get(name)!r}, not text")
    for name in _NUMBERS:
        if not is_number(summary.get(name)):
            raise UserError(f"damaged file {path}: {name} is {summary.get(name)!r}, not a number")
    for name in _OPTIONAL:
        if summary.get(name) is not None and not is_number(summary[name]):
            raise UserError(f"damaged file {path}: {name} is {summary[name]!r}, not a number")
    if not isinstance(summary.get("seed"), int) or summary["steps"] <= 0 or summary["tokens"] <= 0:
        raise UserError(f"damaged file {path}: seed, steps or tokens is missing or cannot be")
    if not isinstance(summary.get("ffn_options"), dict):
        raise UserError(f"damaged file {path}: ffn_options is not an object")
    if not isinstance(summary.get("statistics") or {}, dict):
        raise UserError(f"damaged file {path}: statistics is not an object")


def is_number(value: object) -> bool:
    """Whether a value from a file is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(_read(path))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"damaged file {path}: {' '.join(str(error).split())}") from None
    for section in ("model", "data", "optimizer", "training"):
        if not isinstance(config, dict) or not isinstance(config.get(section), dict):
            raise UserError(f"damaged file {path}: it has no {section} section")
    return config


def _validations(path: Path) -> Iterator[Validation]:
    for number, text in enumerate(_read(path).splitlines(), start=1):
        try:
            line = json.loads(text)
            values = [line["tokens"], line["training_flops"], line.get("validation_loss")]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UserError(f"damaged file {path}: line {number} is not a line of metrics") from None
        if values[2] is None:
            continue
        if not all(map(is_number, values)):
            raise UserError(f"damaged file {path}: line {number} holds something that is not a number")
        yield Validation(*values)
