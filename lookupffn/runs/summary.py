"""summary.json: everything a comparison needs to know about a finished run."""

from __future__ import annotations

import contextlib
import platform
import subprocess
import tomllib
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from lookupffn.config.sections import TrainingSettings
from lookupffn.cost import TRAINING_MULTIPLE
from lookupffn.data import PreparedData
from lookupffn.models import LookupRobertaForMaskedLM
from lookupffn.objectives.mlm import EvaluationResult
from lookupffn.training.budget import Clock

# nats below the unigram loss at which a model has left the plateau that masked language modelling starts on
PLATEAU_MARGIN = 0.5
ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "accelerate", "numpy")


def model_figures(model: LookupRobertaForMaskedLM, sequence_length: int, masked: int) -> dict[str, Any]:
    """What a model costs: FLOPs a token, parameters, and the same of GEMM feed-forwards in its place.

    Args:
        model: the model.
        sequence_length: tokens attention runs over.
        masked: positions a sequence that the LM head runs on.
    """
    ffn, gemm = model.ffn_cost(), model.gemm_ffn_cost()
    whole = model.cost(sequence_length, masked / sequence_length)
    options = dict(model.config.ffn)
    layers = model.config.num_hidden_layers
    return {
        "ffn": options.pop("name"),
        "ffn_options": options,
        # of all layers together
        "ffn_flops_per_token": ffn.flops,
        "ffn_flops_per_token_per_layer": ffn.flops / layers,
        "gemm_ffn_flops_per_token": gemm.flops,
        "model_flops_per_token": whole.flops,
        "parameters_touched": whole.parameters_touched,
        "ffn_parameters_touched": ffn.parameters_touched,
        "ffn_parameters": sum(p.numel() for ffn in model.feed_forwards() for p in ffn.parameters()),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def run_summary(
    figures: dict[str, Any],
    *,
    config: dict[str, Any],
    settings: TrainingSettings,
    data: PreparedData,
    accelerator: Accelerator,
    validation: Mapping[str, Any],
    unigram: EvaluationResult,
    lines: Sequence[dict[str, Any]],
    step: int,
    tokens: int,
    flops_per_token: float,
    skipped: int,
    best: dict[str, Any] | None,
    clock: Clock,
    around: Mapping[str, Any],
    wall_clock_s: float,
    model_sha256: dict[str, str],
) -> dict[str, Any]:
    """The contents of summary.json.

    Args:
        figures: what ``model_figures`` says of the trained model.
        config, settings, data, accelerator: of the run.
        validation: the last validation, as in metrics.jsonl.
        unigram: the unigram's score on the same tokens.
        lines: metrics.jsonl.
        step, tokens: trained on.
        flops_per_token: of training.
        skipped: steps whose batch was left out.
        best: step and validation_loss of the best validation.
        clock: seconds in training steps, validations and checkpoints.
        wall_clock_s: seconds in all.
        around: ``surroundings`` when it started.
        model_sha256: digests of the files of model/.
    """
    return {
        **{key: figures[key] for key in ("ffn", "ffn_options")},
        "model": config["model"]["name"],
        "data": config["data"]["name"],
        "seed": config["seed"],
        "steps": step,
        "tokens": tokens,
        "budget": {"unit": settings.budget.unit, "amount": settings.budget.amount},
        **{key: validation[key] for key in ("validation_loss", "validation_perplexity")},
        "best": best,
        "unigram_loss": unigram.loss,
        "unigram_perplexity": unigram.perplexity,
        "masked_validation_tokens": unigram.masked_tokens,
        "statistics": {key.removeprefix("ffn_"): validation[key] for key in validation if key.startswith("ffn_")},
        "plateau_exit_step": plateau_exit_step(lines, unigram.loss),
        "skipped_steps": skipped,
        **{key: value for key, value in figures.items() if key not in ("ffn", "ffn_options")},
        "training_flops": flops_per_token * tokens,
        "wall_clock_s": wall_clock_s,
        "training_s": clock.seconds(),
        **{f"{what}_s": clock.aside.get(what, 0.0) for what in ("validation", "checkpoint")},
        "tokens_per_s": tokens / max(clock.seconds(), 1e-9),
        "processes": accelerator.num_processes,
        "precision": settings.precision,
        "data_fingerprint": data.data_fingerprint,
        "tokenizer_fingerprint": data.tokenizer_fingerprint,
        "model_sha256": model_sha256,
        **around,
    }


def training_flops_per_token(figures: dict[str, Any]) -> float:
    """Forward and backward, as in `lookupffn.cost`."""
    return TRAINING_MULTIPLE * figures["model_flops_per_token"]


def plateau_exit_step(lines: Sequence[dict[str, Any]], unigram_loss: float) -> int | None:
    """The first validation whose loss is half a nat below the unigram loss; None where there is none.

    Args:
        lines: metrics.jsonl.
        unigram_loss: nats, of the same masked tokens.
    """
    for line in lines:
        loss = line.get("validation_loss")
        if loss is not None and loss <= unigram_loss - PLATEAU_MARGIN:
            return line["step"]
    return None


def surroundings(device: torch.device) -> dict[str, Any]:
    """Machine and software: device, threads, git_commit, versions."""
    return {
        "device": device.type,
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        "git_commit": git_commit(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of Python and of what computes; what is not installed is left out."""
    found = {"python": platform.python_version(), "lookupffn": own_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return {name: value for name, value in found.items() if value is not None}


def own_version() -> str | None:
    """This project's version, from the checkout it runs from or as installed."""
    with contextlib.suppress(OSError, tomllib.TOMLDecodeError, KeyError):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        if project["name"] == "lookupffn":
            return project["version"]
    with contextlib.suppress(PackageNotFoundError):
        return version("lookupffn")
    return None


def device_name(device: torch.device) -> str:
    """The model of the GPU or CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def git_commit() -> str | None:
    """The commit of the checkout this package runs from, "-dirty" after it where files differ; None outside one."""
    try:
        top, commit, *_ = _git("rev-parse", "--show-toplevel", "HEAD").split("\n")
        # a package installed inside some other project's checkout is not that project
        if Path(top) != ROOT:
            return None
        return commit + ("-dirty" if _git("status", "--porcelain", "--untracked-files=no").strip() else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    return subprocess.run(
        # status would otherwise take the lock of a repository that someone may be working in
        ["git", "--no-optional-locks", "-C", str(ROOT), *arguments],
        capture_output=True, text=True, timeout=10, check=True, stdin=subprocess.DEVNULL,
    ).stdout  # fmt: skip
