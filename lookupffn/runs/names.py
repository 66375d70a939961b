"""Names in and of a run folder.

config.yaml        the resolved config, written first
metrics.jsonl      one line per logged step
checkpoints/       see checkpoint.py
model/             HuggingFace format, written when training is done
token_counts.json  how often each token occurs in the training text
summary.json       written last: a folder that has one is finished
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lookupffn.config.schema import rule_of
from lookupffn.config.sections import later_settings

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
_LATER = later_settings()
_LONGEST_NAME = 120


def default_name(config: Mapping[str, Any]) -> str:
    """{ffn}-{model}-{data or task}-seed{seed}-{hash of everything that defines the run}."""
    return f"{_subject(config)}-seed{config['seed']}-{_digest(config)}"


def group_name(config: Mapping[str, Any], differing: Sequence[str] = ()) -> str:
    """The same for runs that differ by nothing but their seed; ``differing`` as for ``member_name``."""
    parts = _parts(config, differing)
    return "-".join(parts) if len(parts) > 1 else f"{_subject(config)}-{_digest({**config, 'seed': None})}"


def member_name(config: Mapping[str, Any], differing: Sequence[str]) -> str:
    """lookup-T32-S256-seed0: the feed-forward, the settings in which the members of a sweep differ, and the seed.

    Args:
        config: of the member.
        differing: the settings, as "ffn.num_tables", "seed". Without any, the name is the default one.
    """
    name = "-".join([*_parts(config, differing), f"seed{config['seed']}"])
    return name if differing and len(name) <= _LONGEST_NAME else default_name(config)


def _subject(config: Mapping[str, Any]) -> str:
    """lookup-tiny-text."""
    return "-".join(_plain(part) for part in (config["ffn"]["name"], config["model"]["name"], source_name(config)))


def source_name(config: Mapping[str, Any]) -> str:
    """What a run trains on: its corpus, or the task that it is fine-tuned for."""
    return config["task" if "task" in config else "data"]["name"]


def _digest(config: Mapping[str, Any]) -> str:
    defining = {}
    for key, value in config.items():
        if key in _LATER and isinstance(value, Mapping):  # at its default, an option that older runs do not have
            value = {name: own for name, own in value.items() if name not in _LATER[key] or own != _LATER[key][name]}
        if key not in NOT_IN_NAME:
            defining[key] = value
    return hashlib.sha256(json.dumps(defining, sort_keys=True).encode()).hexdigest()[:8]


def _parts(config: Mapping[str, Any], differing: Sequence[str]) -> list[str]:
    parts = [_plain(config["ffn"]["name"])]
    differing = [key for key in differing if key.split(".")[0] not in (*NOT_IN_NAME, "seed") and key != "ffn.name"]
    # model=tiny,mini differs in every size, and its name says them all
    named = {key.split(".")[0] for key in differing if key.endswith(".name")} - {"ffn", "optimizer"}
    symbols = _symbols(config["ffn"]["name"])
    for key in differing:
        section, _, option = key.rpartition(".")
        if section.split(".")[0] in named:
            if option == "name":
                parts.append(_plain(config[section]["name"]))
            continue
        value: Any = config
        for step in key.split("."):
            value = value.get(step) if isinstance(value, Mapping) else None
        if value is None:
            continue
        label = symbols.get(option, option) if section == "ffn" else option
        plain = f"{value:g}" if isinstance(value, float) else _plain(value)
        parts.append(f"{label}{plain}" if isinstance(value, int | float) else f"{label}_{plain}")
    return parts


def _symbols(ffn: str) -> dict[str, str]:
    """The letters that stand for a feed-forward's options: {"num_tables": "T"}."""
    # imported here so that what only reads runs does not wait for torch
    from lookupffn.layers import ffn_class, ffn_names

    fields = dataclasses.fields(ffn_class(ffn).Options) if ffn in ffn_names() else ()
    return {field.name: rule_of(field).symbol for field in fields if rule_of(field).symbol}


def _plain(value: object) -> str:
    """Text that any file system takes."""
    return re.sub(r"[^\w.+-]", "_", str(value))
