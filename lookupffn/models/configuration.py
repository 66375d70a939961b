"""Configuration of a pre-norm RoBERTa whose feed-forward is chosen by name."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedTokenizerBase, RobertaPreLayerNormConfig

from lookupffn.config.schema import read
from lookupffn.config.sections import AttentionSettings, InitialisationSettings, ModelSettings
from lookupffn.errors import UserError, first_line, unknown_name
from lookupffn.layers import ffn_class, resolve_options
from lookupffn.models.hub import RELAY, RELAY_TEXT, auto_map
from lookupffn.storage import read_json
from lookupffn.tokenizers import own_pad_id, vocabulary_size

# model_type of transformers' own pre-norm RoBERTa
STOCK = RobertaPreLayerNormConfig.model_type
# of padding ids, that RoBERTa's and BERT's tokenizers have: positions then count as in stock models
_STOCK_PADDING = (0, 1)
_MOST_LABELS = 100_000
_FIELD = re.compile(r"[Ff]ield '(\w+)'")
# by the Auto class of transformers
AUTO_CLASSES = {
    "AutoConfig": "LookupRobertaConfig",
    "AutoModel": "LookupRobertaModel",
    **{
        f"AutoModelFor{task}": f"LookupRobertaFor{task}"
        for task in (
            "MaskedLM", "MultipleChoice", "QuestionAnswering", "SequenceClassification", "TokenClassification"
        )
    },
}  # fmt: skip


@strict
class LookupRobertaConfig(InitialisationSettings, AttentionSettings, RobertaPreLayerNormConfig):
    """transformers' RobertaPreLayerNormConfig and the choice of feed-forward.

    Args:
        ffn: ``{"name": "lookup", "num_tables": 8, ...}``: a registered feed-forward's name and options. After
            construction it holds every option, defaults resolved, and so does config.json. GEMM if None.
        position_init: how the learned position embeddings start: "normal", as BERT's, or "sinusoidal" (Vaswani et al.,
            arXiv 1706.03762, section 3.5, scaled to initializer_range), from which attention finds neighbours sooner.
        attention_init: how attention's matrices start: "normal", as BERT's, or "mimetic" (see initialization.py), from
            which, with sinusoidal positions, it looks at neighbours at once.
        head_init: how the LM head's transform starts: "normal", as BERT's, or "identity", from which the last layer's
            features are compared with the token embeddings at once.
        attention_projection: what queries, keys, values and attention's output are projected by: "dense" matrices, or
            "lookup", the operation of ffn=lookup; with attention_init="mimetic" its tables start near those matrices.
        attention_tables: tables of each such lookup; hidden_size / 8 if None.
        attention_probes: rows that it reads of each table.
        first_position: row of the position embeddings that belongs to the first token; if None RoBERTa's, which is the
            one after pad_token_id, or 0 without padding.

    Raises:
        UserError: an unknown feed-forward or option, or a value it cannot have.
    """

    model_type = "lookup-roberta"

    ffn: dict | None = None
    first_position: int | None = None
    use_cache: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        labels = kwargs.get("num_labels")
        if isinstance(labels, int) and labels > _MOST_LABELS:
            raise UserError(f"num_labels is {labels}: at most {_MOST_LABELS} are supported")
        super().__post_init__(**kwargs)
        self.check_positions()
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"model: hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads}"
            )
        for settings in (InitialisationSettings, AttentionSettings):
            given = {field.name: getattr(self, field.name) for field in fields(settings)}
            read(settings, given, "model.", "option of model")
        if self.attention_projection == "lookup":
            resolve_options("lookup", self.hidden_size, self.attention_lookup)
        options = dict(self.ffn or {"name": "gemm"})
        if "name" not in options:
            raise UserError('ffn has no name; give a dictionary such as {"name": "lookup", "num_tables": 8}')
        name = options.pop("name")
        for shared in ffn_class(name).Options.shared():
            if options.get(shared) is None:
                options[shared] = getattr(self, shared)
        self.ffn = {"name": name, **asdict(resolve_options(name, self.hidden_size, options))}

    def check_positions(self) -> None:
        """Raises a UserError where padding, positions and chunks cannot be as they are."""
        pad, chunk = self.pad_token_id, self.chunk_size_feed_forward
        if pad is not None and not 0 <= pad < self.vocab_size:
            raise UserError(f"pad_token_id {pad} is not in the vocabulary of {self.vocab_size}: correct it")
        if self.first_position is None:
            self.first_position = 0 if pad is None else pad + 1
        if not 0 <= self.first_position < self.max_position_embeddings:
            raise UserError(
                f"max_position_embeddings {self.max_position_embeddings} leaves no position from row "
                f"{self.first_position} on, where the first token's is: raise it, or give first_position=0"
            )
        if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 0:
            raise UserError(f"chunk_size_feed_forward must be 0 (no chunks) or a number of tokens, not {chunk!r}")

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """As transformers'; beside config.json a file through which transformers finds the classes, if allowed to."""
        self.auto_map = auto_map(AUTO_CLASSES)
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        (Path(save_directory) / f"{RELAY}.py").write_text(RELAY_TEXT, encoding="utf-8")
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Nothing to do: saved folders name the package that has the classes, they do not hold a copy of them."""

    @property
    def attention_lookup(self) -> dict[str, Any]:
        """Options of the lookups that take the place of attention's projections."""
        tables = self.attention_tables or max(1, self.hidden_size // 8)
        return {"num_tables": tables, "num_probes": self.attention_probes}

    @property
    def max_positions(self) -> int:
        """The longest sequence, in tokens."""
        return self.max_position_embeddings - self.first_position

    @property
    def stock_positions(self) -> bool:
        """Whether positions count as in transformers' own model: from the row after the one of padding."""
        return self.pad_token_id is not None and self.first_position == self.pad_token_id + 1


def build_model_config(
    model: ModelSettings, ffn: Mapping[str, Any], transformers: Mapping[str, Any] | None = None
) -> LookupRobertaConfig:
    """The configuration of a run's model, whose vocabulary is still open: see ``fit_tokenizer``.

    Args:
        model: the model section.
        ffn: a feed-forward's name and options.
        transformers: options of transformers' own, such as tie_word_embeddings, which it checks.

    Raises:
        UserError: an option that nobody has, or a value that it cannot have, or a feed-forward that cannot be.
    """
    transformers = transformers or {}
    for name in transformers:
        if name not in {field.name for field in fields(LookupRobertaConfig)}:
            raise unknown_name("option of model", name, [field.name for field in fields(ModelSettings)])
    try:
        return LookupRobertaConfig(
            **{name: getattr(model, name) for name in ModelSettings.architecture()},
            **transformers,
            ffn=dict(ffn),
            first_position=0,
            max_position_embeddings=model.max_positions,
            type_vocab_size=1,
        )
    except UserError:
        raise
    except (StrictDataclassError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        field = _FIELD.search(reason)
        raise UserError(f"model{f'.{field[1]}' if field else ''} has a value that it cannot have: {reason}") from None


def fit_tokenizer(config: LookupRobertaConfig, tokenizer: PreTrainedTokenizerBase) -> LookupRobertaConfig:
    """A copy of a configuration, with the vocabulary and the special tokens of a tokenizer."""
    pad = own_pad_id(tokenizer)
    # rows before the first position are never read: one or two of them are RoBERTa's habit, thousands are memory
    first = pad + 1 if pad in _STOCK_PADDING else 0
    fitted = deepcopy(config)
    fitted.vocab_size = vocabulary_size(tokenizer)
    fitted.pad_token_id, fitted.bos_token_id, fitted.eos_token_id = pad, tokenizer.bos_token_id, tokenizer.eos_token_id
    fitted.first_position, fitted.max_position_embeddings = first, config.max_positions + first
    fitted.check_positions()
    return fitted


def load_model_config(folder: Path) -> LookupRobertaConfig:
    """config.json of a model folder; transformers' own pre-norm RoBERTa is one with GEMM feed-forwards.

    Raises:
        UserError: unreadable, or of another kind of model.
    """
    values = read_json(folder / "config.json")
    if values.get("model_type") not in (LookupRobertaConfig.model_type, STOCK):
        raise UserError(
            f"{folder}: model_type is {values.get('model_type')!r}; {LookupRobertaConfig.model_type!r} and "
            f"transformers' {STOCK!r} can be loaded"
        )
    values["model_type"] = LookupRobertaConfig.model_type
    try:
        return LookupRobertaConfig.from_dict(values)
    except UserError:
        raise
    except Exception as error:  # whatever transformers makes of a config that it did not write
        raise UserError(f"{folder / 'config.json'} does not describe a model ({first_line(error)})") from None
