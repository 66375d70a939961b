"""Run folders that no training has left."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

GEMM_FLOPS = 524_288
TOKENS_PER_STEP = 4096


def write_run(
    folder: Path,
    ffn: str = "lookup",
    *,
    loss: float = 4.0,
    flops: float = 83_000,
    seed: int = 0,
    steps: int = 1500,
    exit_step: int | None = 250,
    lr: float = 0.004,
    hidden_size: int = 128,
    options: dict[str, Any] | None = None,
    training_loss: float = 5.0,
    halfway: float | None = None,
    config: dict[str, Any] | None = None,
    **summary: Any,
) -> Path:
    """A finished run.

    Args:
        folder: where.
        ffn: its feed-forward.
        loss: final validation loss.
        flops: of its feed-forwards.
        seed: its seed.
        steps: it was trained for, of 4,096 tokens.
        exit_step: at which it left the plateau.
        lr: learning rate.
        hidden_size: the model's.
        options: of the feed-forward.
        training_loss: that is logged at every step.
        halfway: validation loss at half of the steps; on a straight line if None.
        config: sections of config.yaml, merged into the default ones.
        **summary: replaces or adds values of summary.json.
    """
    folder.mkdir(parents=True)
    sections = _config(ffn, hidden_size, lr, steps)
    for name, values in (config or {}).items():
        sections[name] = {**sections[name], **values} if isinstance(values, dict) else values
    (folder / "config.yaml").write_text(yaml.safe_dump({**sections, "seed": seed, "init_from": None}))
    if config and "init_from" in config:
        (folder / "config.yaml").write_text(yaml.safe_dump({**sections, "seed": seed}))
    lines = _metrics(loss, steps, flops, halfway)
    (folder / "metrics.jsonl").write_text("".join(json.dumps({**line, "loss": training_loss}) + "\n" for line in lines))
    values = {
        "ffn": ffn,
        "ffn_options": {} if options is None else options,
        "model": "tiny",
        "data": "docstrings",
        "seed": seed,
        "steps": steps,
        "tokens": steps * TOKENS_PER_STEP,
        "validation_loss": loss,
        "validation_perplexity": math.exp(min(loss, 700)),
        "unigram_loss": 6.857,
        "masked_validation_tokens": 37_280,
        "plateau_exit_step": exit_step,
        "ffn_flops_per_token": flops,
        "gemm_ffn_flops_per_token": GEMM_FLOPS,
        "ffn_parameters": 2_000_000,
        "parameters": 3_000_000,
        "tokens_per_s": 30_000.0 + seed,
        "data_fingerprint": "a" * 32,
        "tokenizer_fingerprint": "b" * 32,
        "device_name": "a machine",
        "threads": 2,
    }
    (folder / "summary.json").write_text(json.dumps(values | summary))
    return folder


def _metrics(loss: float, steps: int, flops: float, halfway: float | None) -> Iterator[dict[str, Any]]:
    """Lines of metrics.jsonl, every 100 steps; validation losses fall on a straight line, or to ``halfway`` first."""
    for step in range(100, steps + 1, 100):
        line = {
            "step": step,
            "tokens": step * TOKENS_PER_STEP,
            "training_flops": step * TOKENS_PER_STEP * (1e6 + flops),
        }
        middle = halfway is not None and step == steps // 200 * 100
        if step % 500 == 0 or middle:
            value = halfway if middle else loss + (6.8 - loss) * (1 - step / steps)
            line |= {"validation_loss": value, "validation_perplexity": math.exp(min(value, 700))}
        yield line


def _config(ffn: str, hidden_size: int, lr: float, steps: int) -> dict[str, Any]:
    return {
        "ffn": {"name": ffn},
        "model": {
            "name": "tiny",
            "num_hidden_layers": 2,
            "hidden_size": hidden_size,
            "intermediate_size": 4 * hidden_size,
            "sequence_length": 64,
        },
        "data": {"name": "docstrings", "sequence_length": 64, "mask_rate": 0.15},
        "optimizer": {"name": "adamw", "lr": lr, "betas": [0.9, 0.98], "warmup_steps": None},
        "training": {"batch_size": 64, "precision": "fp32", "max_steps": steps},
    }


def write_tuned(
    folder: Path,
    ffn: str = "lookup",
    *,
    pretrained_from: Path | str | None = None,
    task: str = "sst2",
    accuracy: float = 0.8,
    seed: int = 0,
    flops: float = 83_000,
    options: dict[str, Any] | None = None,
    freeze: str | None = None,
    **summary: Any,
) -> Path:
    """A finished fine-tuning run, of a new model if ``pretrained_from`` is None; the rest is as for ``write_run``."""
    folder.mkdir(parents=True)
    config = {
        "model": {"name": "tiny", "num_hidden_layers": 2, "hidden_size": 128, "intermediate_size": 512},
        "optimizer": {"name": "adamw", "lr": 1e-4},
        "training": {"batch_size": 32, "max_epochs": 3},
        "task": {"name": task, "data": f"somewhere/{seed}", "freeze": freeze},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, "seed": seed}))
    values = {
        "ffn": ffn,
        "ffn_options": {} if options is None else options,
        "model": "tiny",
        "seed": seed,
        "task": task,
        "pretrained_from": None if pretrained_from is None else str(pretrained_from),
        "validation_loss": 0.5,
        "validation_accuracy": accuracy,
        "data_fingerprint": "d" * 32,
        "ffn_flops_per_token": flops,
        "gemm_ffn_flops_per_token": GEMM_FLOPS,
        "ffn_parameters": 2_000_000,
        "parameters": 3_000_000,
    }
    (folder / "summary.json").write_text(json.dumps(values | summary))
    return folder


def write_gemm(folder: Path, *, size: int = 512, **values: Any) -> Path:
    """A finished GEMM run of some intermediate size."""
    options = {"intermediate_size": size, "hidden_act": "gelu"}
    return write_run(folder, "gemm", options=options, flops=GEMM_FLOPS * size / 512, **values)


def write_race(folder: Path) -> Path:
    """gemm 4.0, none 4.4, lookup of 16 tables 4.2 and of 32 tables 3.9, all give or take 0.01 over three seeds."""
    for seed in range(3):
        off = 0.01 * (seed - 1)
        write_gemm(folder / f"gemm-{seed}", loss=4.0 + off, seed=seed)
        write_run(folder / f"none-{seed}", "none", loss=4.4 + off, flops=0, seed=seed)
        for tables, loss in ((16, 4.2), (32, 3.9)):
            options = {"num_tables": tables, "block_size": None}
            write_run(
                folder / f"lookup-{tables}-{seed}", loss=loss + off, flops=2600 * tables, seed=seed, options=options
            )
    return folder


def write_latency(path: Path, *entries: dict[str, Any], **head: Any) -> Path:
    """A latency.json with entries for the model of ``write_run``; ``head`` replaces what it says of the machine."""
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "intermediate_size": 512}
    content = {"device_name": "a machine", "threads": 2, "tokens": 4096, "variants": [sizes | e for e in entries]}
    path.write_text(json.dumps(content | head))
    return path
