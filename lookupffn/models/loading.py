"""Loading a model folder without running a stranger's code: safetensors, JSON, and one line for what is wrong."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase, RobertaPreLayerNormForMaskedLM

from lookupffn import tokenizers
from lookupffn.errors import UserError, first_line
from lookupffn.models.configuration import STOCK, LookupRobertaConfig, load_model_config
from lookupffn.models.heads import LookupRobertaForMaskedLM
from lookupffn.models.modeling import LookupRobertaPreTrainedModel
from lookupffn.models.state_dict import check_shapes, load_stock_weights
from lookupffn.storage import read_json
from lookupffn.tokenizers import vocabulary_size


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
    stock = read_json(folder / "config.json")["model_type"] == STOCK
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
        raise UserError(f"cannot load the weights in {folder} ({first_line(error)})") from None
    absent = sorted(str(key) for key in (*info["missing_keys"], *info["mismatched_keys"]))
    if absent:
        raise UserError(f"{folder}: {len(absent)} weights are missing or of another shape, the first {absent[0]}")
    if stock:
        loaded, model = model, LookupRobertaForMaskedLM(config)
        load_stock_weights(model, loaded)
    return model


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a model folder.

    Raises:
        UserError: there is none, or its vocabulary is not the model's.
    """
    tokenizer = tokenizers.load_tokenizer(Path(folder))
    check_vocabulary(tokenizer, load_model_config(folder), folder)
    return tokenizer


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, config: LookupRobertaConfig, folder: Path) -> None:
    """Raises a UserError where a tokenizer and a model do not have the same number of entries."""
    entries = vocabulary_size(tokenizer)
    if entries != config.vocab_size:
        raise UserError(
            f"the tokenizer has {entries} entries and the model in {folder} {config.vocab_size}: "
            f"they do not belong together; use the model's own (tokenizer=pretrained tokenizer.path={folder})"
        )
