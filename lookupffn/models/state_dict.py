"""Weights in files and in other layouts: what a folder holds, whether it fits its config.json, and renaming.

All that can be told from headers is told from them: a config.json that asks for a million layers, or for tables of
gigabytes, is refused before any of it is made.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig, PreTrainedModel

from lookupffn.errors import UserError
from lookupffn.models.configuration import load_model_config
from lookupffn.storage import check_ordinary, read_json

SINGLE, SHARDS = "model.safetensors", "model.safetensors.index.json"
_LAYER = re.compile(r"encoder\.layer\.(\d+)\.")
_LARGEST_HEADER = 2**23  # tens of thousands of tensors
_LARGEST_JSON = 2**28
# elements that a model may have beyond its file: heads, and feed-forwards that are to be trained anew
_NEW_ELEMENTS = 2**28


def check_files(folder: Path) -> None:
    """Refuses what could block or never end when a library opens it: pipes, devices, JSON of gigabytes.

    Raises:
        UserError: naming the file.
    """
    try:
        entries = [(path, path.stat()) for path in sorted(folder.iterdir()) if path.exists()]
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror or error}") from None
    for path, status in entries:
        if not path.is_dir():
            check_ordinary(path)
        if path.suffix == ".json" and status.st_size > _LARGEST_JSON:
            raise UserError(f"cannot read {path}: it is larger than {_LARGEST_JSON:,} bytes")


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in a model folder.

    Raises:
        UserError: a file is missing or damaged.
    """
    try:
        files = [SINGLE]
        if not (folder / SINGLE).exists() and (folder / SHARDS).exists():
            files = sorted(set(read_json(folder / SHARDS)["weight_map"].values()))
        found: dict[str, tuple[int, ...]] = {}
        for file in files:
            if Path(file).name != file:
                raise ValueError(f"{file} is not in the folder")
            _check_header(folder / file)
            with safe_open(folder / file, "pt") as weights:
                found |= {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise UserError(f"cannot load the weights in {folder} ({' '.join(str(error).split())[:300]})") from None
    return found


def _check_header(file: Path) -> None:
    with open(file, "rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
    if size > _LARGEST_HEADER:
        raise ValueError(f"the header of {file.name} has {size:,} bytes, more than any model's of this kind")


def check_shapes(folder: Path, cls: type[PreTrainedModel], config: PreTrainedConfig, *, complete: bool = True) -> None:
    """Compares a folder's weights with the model that a config describes.

    Args:
        folder: of the weights.
        cls: what the model is.
        config: of the model.
        complete: every weight must be there; otherwise the model may have others, such as a new head, and fewer layers.

    Raises:
        UserError: they do not belong together, or cannot be read.
    """
    check_files(folder)
    prefix = f"{cls.base_model_prefix}."
    stored = {name.removeprefix(prefix): shape for name, shape in stored_shapes(folder).items()}
    layers = len({match[1] for name in stored if (match := _LAYER.search(name))})
    wanted = config.num_hidden_layers
    if wanted > layers or (complete and wanted != layers):
        raise UserError(f"{folder}: config.json says {wanted} layers, the weights {layers}")
    try:
        with torch.device("meta"):
            model = cls(config)
    except Exception as error:  # whatever a model makes of numbers that no one checked
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder}/config.json does not describe a model ({reason})") from None
    described = {name.removeprefix(prefix): tensor for name, tensor in model.state_dict().items()}
    for name, tensor in described.items():
        if name in stored and stored[name] != tuple(tensor.shape):
            raise UserError(
                f"{folder}: {name} is {list(stored[name])} in the weights and {list(tensor.shape)} by config.json"
            )
    tied = {name.removeprefix(prefix) for name in getattr(model, "all_tied_weights_keys", ())}
    absent = [name for name in described if name not in stored and name not in tied]
    if complete and absent:
        raise UserError(f"{folder}: {len(absent)} weights are missing, the first {absent[0]}")
    elements = sum(described[name].numel() for name in absent)
    if elements > _NEW_ELEMENTS:
        raise UserError(
            f"{folder}: config.json describes {elements:,} numbers that the weights do not have, the first in "
            f"{absent[0]}: correct config.json"
        )


def check_local_folder(path: str | Path | None, cls: type[PreTrainedModel], config: Any) -> None:
    """``check_shapes`` of a folder on this machine that has safetensors; anything else is transformers' to judge."""
    folder = None if path is None else Path(path)
    if folder is None or not folder.is_dir() or not any((folder / name).exists() for name in (SINGLE, SHARDS)):
        return
    check_files(folder)
    held = config if isinstance(config, PreTrainedConfig) else load_model_config(folder)
    check_shapes(folder, cls, held, complete=False)


def lay_out_as_new(model: PreTrainedModel) -> None:
    """Moves every weight to memory of its own, aligned and strided as in a new model.

    A loaded tensor is a piece of the mapped file, at any address, where the same sums may round otherwise: a resumed
    run would part from an uninterrupted one in the last bit.
    """
    with torch.device("meta"):
        new = type(model)(model.config)
    strides = {name: tensor.stride() for name, tensor in _tensors(new)}
    for name, tensor in _tensors(model):
        if type(tensor.data) is torch.Tensor and name in strides:
            own = torch.empty_strided(tensor.shape, strides[name], dtype=tensor.dtype, device=tensor.device)
            tensor.data = own.copy_(tensor.data)


def _tensors(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers, tied ones once."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def load_stock_weights(model: PreTrainedModel, stock: PreTrainedModel) -> tuple[list[str], list[str]]:
    """Copies a stock pre-norm RoBERTa's weights: all of them with ``ffn=gemm``, else all but the feed-forwards'.

    Args:
        model: a LookupRobertaForMaskedLM.
        stock: a RobertaPreLayerNormForMaskedLM of the same sizes.

    Returns:
        Names of parameters of ``model`` that found no counterpart, and of ``stock`` that were not used.
    """
    renamed = {}
    for name, value in stock.state_dict().items():
        name = name.replace("intermediate.LayerNorm", "ffn_layer_norm").replace(
            "intermediate.dense", "ffn.intermediate"
        )
        if ".encoder.layer." in name and ".attention." not in name:
            name = name.replace(".output.dense", ".ffn.output")
        renamed[name] = value
    missing, unexpected = model.load_state_dict(renamed, strict=False)
    return list(missing), list(unexpected)
