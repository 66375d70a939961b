"""The commands. Each is a function here, a line under [project.scripts] in pyproject.toml, and a file to run it by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from lookupffn.cli.launch import run_main, sweep_member
from lookupffn.cli.sweep import differing_settings

# everything heavy is imported in the functions, so that a mistyped command is answered without waiting for torch


def train() -> None:
    """Pretrains a model: lookupffn-train, python train.py."""
    run_main("train", _train, results=("validation_perplexity", "ffn_flops_per_token"), check=check_pretraining)


def _train(cfg: DictConfig) -> Mapping[str, Any] | None:
    from lookupffn.objectives import MaskedLanguageModelling
    from lookupffn.training import train as run

    return run(cfg, MaskedLanguageModelling, sweep_member=sweep_member(), differing=differing_settings())


def check_pretraining(cfg: DictConfig) -> None:
    from lookupffn.config.run import resolve
    from lookupffn.objectives import MaskedLanguageModelling
    from lookupffn.training.run import build_objective

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
