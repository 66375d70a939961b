"""Names in and of a run folder.

config.yaml        the resolved config, written first
metrics.jsonl      one line per logged step
checkpoints/       see checkpoint.py
model/             HuggingFace format, written when training is done
token_counts.json  how often each token occurs in the training text
summary.json       written last: a folder that has one is finished
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
MODEL = "model"
SUMMARY = "summary.json"
TOKEN_COUNTS = "token_counts.json"
LOCK = ".lock"
# folders of a run that hold no other runs
INNER_FOLDERS = (CHECKPOINTS, MODEL, "wandb", "trackio")
# what a run is written with, not what it computes
NOT_IN_NAME = ("output_dir", "overwrite", "cache_dir", "tracker")


def default_name(config: dict[str, Any]) -> str:
    """{ffn}-{model}-{data or task}-seed{seed}-{hash of everything that defines the run}."""
    defining = {key: value for key, value in config.items() if key not in NOT_IN_NAME}
    digest = hashlib.sha256(json.dumps(defining, sort_keys=True).encode()).hexdigest()[:8]
    parts = [config["ffn"]["name"], config["model"]["name"], source_name(config), f"seed{config['seed']}", digest]
    return "-".join(str(part).replace("/", "_") for part in parts)


def source_name(config: dict[str, Any]) -> str:
    """What a run trains on: its corpus, or the task that it is fine-tuned for."""
    return config["task" if "task" in config else "data"]["name"]


def member_folder(config: dict[str, Any]) -> Path:
    """The folder of a sweep member: by its default name, in output_dir or outputs/."""
    return Path("outputs" if config["output_dir"] is None else config["output_dir"]) / default_name(config)
