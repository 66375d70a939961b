"""summary.json: everything a comparison needs to know about a finished run, its machine and software among it."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import tomllib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
# variables that change how torch, oneDNN or our kernels compute
NUMERIC_ENVIRONMENT = (
    "LOOKUPFFN_BACKEND",
    "ATEN_CPU_CAPABILITY",
    "MKL_CBWR",
    "DNNL_DEFAULT_FPMATH_MODE",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)
PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "accelerate", "numpy")


def run_summary(
    *,
    config: Mapping[str, Any],
    budget: Mapping[str, Any],
    costs: Mapping[str, Any],
    results: Mapping[str, Any],
    statistics: Mapping[str, float],
    record: Mapping[str, Any],
    surroundings: Mapping[str, Any],
) -> dict[str, Any]:
    """The contents of summary.json.

    Args:
        config: of the run.
        budget: that it trained for: unit and amount.
        costs: what the trained model costs.
        results: what the objective says of data and scores.
        statistics: how the feed-forwards were used in the last validation.
        record: the last checkpoint's: steps, tokens, times (see ``lookupffn.training.state``).
        surroundings: machine and software, as they were when the run started.

    ``model_sha256`` is added when model/ is written, whose card is made of the rest.
    """
    tokens, training_s = record["tokens"], record["training_s"]
    return {
        **{key: costs[key] for key in ("ffn", "ffn_options")},
        "model": config["model"]["name"],
        "seed": config["seed"],
        "steps": record["step"],
        "tokens": tokens,
        "budget": dict(budget),
        # where a session resumed the run with another budget
        **({"budgets": record["budgets"]} if len(record["budgets"]) > 1 else {}),
        **results,
        "best": record["best"],
        "statistics": dict(statistics),
        "skipped_steps": record["skipped_steps"],
        **{key: value for key, value in costs.items() if key not in ("ffn", "ffn_options")},
        "training_flops": record["training_flops_per_token"] * tokens,
        "wall_clock_s": record["wall_clock_s"],
        "training_s": training_s,
        **{f"{what}_s": record["aside_s"].get(what, 0.0) for what in ("validation", "checkpoint")},
        "tokens_per_s": tokens / max(training_s, 1e-9),
        "precision": config["training"]["precision"],
        **surroundings,
    }


def surroundings(device: torch.device) -> dict[str, Any]:
    """Machine and software: device, threads, git_commit, versions, and variables that change how numbers come out."""
    return {
        "device": device.type,
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        "git_commit": git_commit(),
        "versions": versions(),
        "environment": {name: os.environ[name] for name in NUMERIC_ENVIRONMENT if name in os.environ},
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
