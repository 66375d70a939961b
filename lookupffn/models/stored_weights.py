"""Whether a folder's weights are those that its config.json describes, told from their headers alone.

A config.json that asks for a million layers, or for tables of gigabytes, is refused before any of it is made.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig, PreTrainedModel

from lookupffn.errors import UserError

SINGLE, SHARDS = "model.safetensors", "model.safetensors.index.json"
_LAYER = re.compile(r"encoder\.layer\.(\d+)\.")


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in a model folder.

    Raises:
        UserError: a file is missing or damaged.
    """
    try:
        files = [SINGLE]
        if not (folder / SINGLE).exists() and (folder / SHARDS).exists():
            files = sorted(set(json.loads((folder / SHARDS).read_text(encoding="utf-8"))["weight_map"].values()))
        found: dict[str, tuple[int, ...]] = {}
        for file in files:
            if Path(file).name != file:
                raise ValueError(f"{file} is not in the folder")
            with safe_open(folder / file, "pt") as weights:
                found |= {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise UserError(f"cannot load the weights in {folder} ({' '.join(str(error).split())[:300]})") from None
    return found


def check_shapes(folder: Path, cls: type[PreTrainedModel], config: PreTrainedConfig) -> None:
    """Compares a folder's weights with the model that a config describes.

    Args:
        folder: of the weights.
        cls: what the model is.
        config: of the model.

    Raises:
        UserError: they do not belong together, or cannot be read.
    """
    stored = stored_shapes(folder)
    layers = {match[1] for name in stored if (match := _LAYER.search(name))}
    if len(layers) != config.num_hidden_layers:
        raise UserError(f"{folder}: config.json says {config.num_hidden_layers} layers, the weights {len(layers)}")
    try:
        with torch.device("meta"):
            described = cls(config).state_dict()
    except Exception as error:  # whatever a model makes of numbers that no one checked
        raise UserError(f"{folder}/config.json describes no model ({' '.join(str(error).split())[:200]})") from None
    for name, tensor in described.items():
        if name in stored and stored[name] != tuple(tensor.shape):
            raise UserError(
                f"{folder}: {name} is {list(stored[name])} in the weights and {list(tensor.shape)} by config.json"
            )
