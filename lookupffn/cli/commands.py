"""The commands. Each is a function here, a line under [project.scripts] in pyproject.toml, and a file to run it by."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from lookupffn.cli.choices import with_hardware_file
from lookupffn.cli.launch import run_main, sweep_member
from lookupffn.cli.sweep import differing_settings

PROJECTED = ("projected_us_per_token", "projected_ratio")  # figures of a run with hardware=

# everything heavy is imported in the functions, so that a mistyped command is answered without waiting for torch


def train() -> None:
    """Pretrains a model: lookupffn-train, python train.py."""
    sys.argv[1:] = with_hardware_file(sys.argv[1:])
    results = ("validation_perplexity", "ffn_flops_per_token")
    run_main("train", _train, results=results, shown=PROJECTED, check=check_pretraining)


def _train(cfg: DictConfig) -> Mapping[str, Any] | None:
    from lookupffn.objectives import MaskedLanguageModelling
    from lookupffn.training import train as run

    summary = run(cfg, MaskedLanguageModelling, sweep_member=sweep_member(), differing=differing_settings())
    if summary is None or not has_machine(cfg):
        return summary
    from lookupffn.cli.project_hardware import project_run

    return summary | project_run(cfg, summary)


def has_machine(cfg: DictConfig) -> bool:
    """Whether a run's config names a machine to project its time to."""
    return bool(cfg.get("hardware") or cfg.get("hardware_file"))


def check_pretraining(cfg: DictConfig) -> None:
    from lookupffn.config.run import resolve
    from lookupffn.objectives import MaskedLanguageModelling
    from lookupffn.training.run import build_objective

    if has_machine(cfg):
        from lookupffn.cli.project_hardware import machine_in

        machine_in(cfg)
    values = resolve(cfg, MaskedLanguageModelling.sections)
    if not values["init_from"]:  # else the model found there decides
        build_objective(values, MaskedLanguageModelling)


def finetune() -> None:
    """Fine-tunes a model on a labelled task: lookupffn-finetune, python finetune.py."""
    run_main("finetune", _finetune, results=("score",))


def _finetune(cfg: DictConfig) -> Mapping[str, Any] | None:
    from lookupffn.training.finetuning import finetune as run

    score = run(cfg, sweep_member=sweep_member(), differing=differing_settings())
    return None if score is None else {"score": score}


def evaluate() -> None:
    """Scores a run or a model folder: lookupffn-evaluate, python evaluate.py."""
    run_main("evaluate", _evaluate, results=("validation_perplexity",))


def _evaluate(cfg: DictConfig) -> Mapping[str, Any] | None:
    from lookupffn.evaluation.score import score

    return score(cfg)
