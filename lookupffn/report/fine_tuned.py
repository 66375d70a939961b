"""Finished fine-tuning runs, each with the pretraining run that it started from."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lookupffn.errors import UserError
from lookupffn.report.runs import (
    LeftOut,
    Run,
    check_identity,
    check_numbers,
    check_texts,
    flat,
    is_number,
    optimizer_settings,
    read_run,
    stated,
)
from lookupffn.runs.names import CONFIG, SUMMARY
from lookupffn.runs.records import read_config

_METRIC = re.compile(r"validation_((?:\w+_)?(?:accuracy|f1|matthews|pearson|spearman)(?:_\w+)?)")
_NUMBERS = ("ffn_flops_per_token", "gemm_ffn_flops_per_token", "ffn_parameters", "parameters")
# of config.yaml: what makes a variant; a task's files and columns do not
_TRAINING = ("batch_size", "precision", "max_steps", "max_epochs")
_NO_SETTINGS_OF_A_TASK = (
    "name",
    "data",
    "train_files",
    "validation_files",
    "text_columns",
    "label_column",
    "label_type",
)


@dataclass(frozen=True)
class FineTuned:
    """A finished fine-tuning run.

    Attributes:
        path: its folder.
        summary: summary.json.
        task: the task's name, with the start of its data's fingerprint where there are several of that name.
        metrics: of the validation data, 0 to 1 or -1 to 1, by name.
        conditions: "model.hidden_size" and so on.
        settings: of fine-tuning.
        origin: the folder that it started from, as the run was told; None for a model that was not pretrained.
        pretrained: the run in that folder; None where it cannot be found.
    """

    path: Path
    summary: Mapping[str, Any]
    task: str
    metrics: Mapping[str, float]
    conditions: Mapping[str, Any]
    settings: Mapping[str, Any]
    origin: str | None
    pretrained: Run | None

    @property
    def ffn(self) -> str:
        """The feed-forward's name."""
        return self.summary["ffn"]

    @property
    def seeds(self) -> tuple[int | None, int]:
        """Of pretraining, if it is known, and of fine-tuning."""
        before = self.record.get("seed") if self.pretrained is None else self.pretrained.seed
        return before if isinstance(before, int) else None, self.summary["seed"]

    @property
    def record(self) -> Mapping[str, Any]:
        """What the run noted of its pretraining: data, tokens, seed, validation_perplexity; empty where it did not."""
        found = self.summary.get("pretraining")
        return found if isinstance(found, Mapping) else {}

    @property
    def perplexity(self) -> float | None:
        """Of the pretraining run; None where it is not known."""
        if self.pretrained is not None:
            return self.pretrained.perplexity
        found = self.record.get("validation_perplexity")
        return found if is_number(found) else None

    @property
    def pretraining_tokens(self) -> float | None:
        """Tokens of pretraining; None where they are not known."""
        found = self.record.get("tokens") if self.pretrained is None else self.pretrained.conditions["tokens"]
        return found if is_number(found) else None

    @property
    def variant(self) -> dict[str, Any]:
        """What it must share with runs that differ from it by their seeds alone."""
        own = {f"ffn.{key}": value for key, value in self.summary["ffn_options"].items()}
        if self.pretrained is None:
            # sizes of the model follow from the pretraining run where there is one
            noted = {key: self.record.get(key) for key in ("data", "tokens")} if self.record else {"from": self.origin}
            before: dict[str, Any] = {**noted, **self.conditions}
        else:
            before = {**self.pretrained.conditions, **self.pretrained.settings}
            before = {key: value for key, value in before.items() if not key.startswith("ffn.")}
        return stated(flat({**own, **self.settings, **{f"pretraining.{key}": value for key, value in before.items()}}))

    @property
    def score(self) -> float:
        """The mean of the task's metrics, as GLUE has it."""
        return statistics.fmean(self.metrics.values())


def read_fine_tuned(
    found: Iterable[tuple[Path, dict[str, Any]]], runs: Sequence[Run]
) -> tuple[list[FineTuned], list[LeftOut]]:
    """Fine-tuning runs, each with the pretraining run it started from.

    Args:
        found: folders and their summary.json (see ``Found``).
        runs: pretraining runs; others are looked for where the fine-tuning run says it started from.

    Raises:
        UserError: a file is damaged.
    """
    known = {run.path.resolve(): run for run in runs}
    tuned, left_out = [], []
    for path, summary in found:
        file = path / SUMMARY
        check_texts(summary, file, ("ffn", "model", "task"))
        check_numbers(summary, file, _NUMBERS)
        check_identity(summary, file)
        metrics = {match[1]: summary[key] for key in summary if (match := _METRIC.fullmatch(key))}
        bad = sorted(name for name, value in metrics.items() if not is_number(value))
        if bad or not metrics:
            left_out.append(LeftOut(path, f"{', '.join(bad)} not a number" if bad else "no validation_<metric>"))
            continue
        conditions, settings = _settings(path, summary)
        origin = summary.get("pretrained_from")
        origin = None if origin is None else str(origin)
        pretrained = None if origin is None else _origin(Path(origin), known)
        tuned.append(FineTuned(path, summary, summary["task"], metrics, conditions, settings, origin, pretrained))
    return tuned, left_out


def _settings(path: Path, summary: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the model is, and how it was fine-tuned."""
    config = read_config(path)
    sections = {name: config.get(name) or {} for name in ("model", "optimizer", "training", "task")}
    if not all(isinstance(section, Mapping) for section in sections.values()):
        raise UserError(f"damaged file {path / CONFIG}: model, optimizer, training or task is no section")
    conditions = {f"model.{key}": value for key, value in sections["model"].items()}
    settings = {
        **{f"fine-tuning.{key}": value for key, value in optimizer_settings(summary, sections["optimizer"]).items()},
        **{f"fine-tuning.{key}": sections["training"].get(key) for key in _TRAINING},
        **{f"task.{k}": value for k, value in flat(sections["task"]).items() if k not in _NO_SETTINGS_OF_A_TASK},
    }
    return flat(conditions), stated(flat(settings))


def _origin(path: Path, known: dict[Path, Run]) -> Run | None:
    """The pretraining run in a folder, or the one that a model folder or checkpoint in it belongs to."""
    for folder in (path, path.parent, path.parent.parent):
        try:
            place = folder.resolve()
            if place not in known and (folder / SUMMARY).is_file():
                known[place] = read_run(folder)
        except (UserError, OSError, ValueError):  # not a pretraining run of ours, or no path at all
            return None
        if place in known:
            return known[place]
    return None
