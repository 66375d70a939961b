"""Loading a model folder without running a stranger's code: safetensors, JSON, and one line for what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RobertaPreLayerNormConfig,
    RobertaPreLayerNormForMaskedLM,
)

from lookupffn.errors import UserError
from lookupffn.models.configuration import LookupRobertaConfig
from lookupffn.models.modeling import LookupRobertaForMaskedLM, LookupRobertaPreTrainedModel, load_stock_weights
from lookupffn.models.stored_weights import check_shapes
from lookupffn.storage import read_json

_STOCK = RobertaPreLayerNormConfig.model_type


def load_model_config(folder: Path) -> LookupRobertaConfig:
    """config.json of a model folder; transformers' own pre-norm RoBERTa is one with GEMM feed-forwards.

    Raises:
        UserError: unreadable, or of another kind of model.
    """
    values = read_json(folder / "config.json")
    if values.get("model_type") not in (LookupRobertaConfig.model_type, _STOCK):
        raise UserError(
            f"{folder}: model_type is {values.get('model_type')!r}; {LookupRobertaConfig.model_type!r} and "
            f"transformers' {_STOCK!r} can be loaded"
        )
    values["model_type"] = LookupRobertaConfig.model_type
    try:
        return LookupRobertaConfig.from_dict(values)
    except UserError:
        raise
    except Exception as error:  # whatever transformers makes of a config that it did not write
        raise UserError(f"{folder / 'config.json'} describes no model ({_first_line(error)})") from None


def load_model(
    folder: Path, cls: type[LookupRobertaPreTrainedModel] = LookupRobertaForMaskedLM
) -> LookupRobertaPreTrainedModel:
    """The model in a folder, every weight found in its safetensors.

    Args:
        folder: of the model.
        cls: what it is; transformers' own pre-norm RoBERTa can be loaded as a masked language model.

    Raises:
        UserError: weights are missing, of other shapes, damaged, or not safetensors.
    """
    config = load_model_config(folder)
    stock = read_json(folder / "config.json")["model_type"] == _STOCK
    cls = RobertaPreLayerNormForMaskedLM if stock else cls
    check_shapes(folder, cls, config)
    try:
        model, info = cls.from_pretrained(
            folder,
            config=None if stock else config,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # whatever transformers makes of files that it did not write
        raise UserError(f"cannot load the weights in {folder} ({_first_line(error)})") from None
    absent = sorted(str(key) for key in (*info["missing_keys"], *info["mismatched_keys"]))
    if absent:
        raise UserError(f"{folder}: {len(absent)} weights are missing or of another shape, the first {absent[0]}")
    if stock:
        loaded, model = model, LookupRobertaForMaskedLM(config)
        load_stock_weights(model, loaded)
    lay_out_as_new(model)
    return model


def lay_out_as_new(model: PreTrainedModel) -> None:
    """Moves every weight to memory of its own, aligned and strided as in a new model.

    A loaded tensor is a piece of the mapped file, at any address, where the same sums may round otherwise: a resumed
    run would part from an uninterrupted one in the last bit.
    """
    with torch.device("meta"):
        new = type(model)(model.config)
    layouts = {name: tensor.stride() for name, tensor in _tensors(new)}
    for name, tensor in _tensors(model):
        own = torch.empty_strided(tensor.shape, layouts[name], dtype=tensor.dtype, device=tensor.device)
        tensor.data = own.copy_(tensor.data)


def _tensors(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers, tied ones once."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a model folder.

    Raises:
        UserError: there is none, or its vocabulary is not the model's.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever its parsers raise
        raise UserError(f"cannot load a tokenizer from {folder} ({_first_line(error)})") from None
    check_vocabulary(tokenizer, load_model_config(folder), folder)
    return tokenizer


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, config: LookupRobertaConfig, folder: Path) -> None:
    """Raises a UserError where a tokenizer and a model do not have the same number of entries."""
    if len(tokenizer) != config.vocab_size:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} entries and the model in {folder} {config.vocab_size}: "
            f"they do not belong together; use the model's own (tokenizer=pretrained tokenizer.path={folder})"
        )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
