"""Configuration of a pre-norm RoBERTa whose feed-forward is chosen by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedTokenizerBase, RobertaPreLayerNormConfig

from lookupffn.config.schema import read
from lookupffn.config.sections import InitialisationSettings, ModelSettings, read_section
from lookupffn.errors import UserError
from lookupffn.layers import ffn_class, resolve_options


@strict
class LookupRobertaConfig(InitialisationSettings, RobertaPreLayerNormConfig):
    """transformers' RobertaPreLayerNormConfig and the choice of feed-forward.

    Args:
        ffn: ``{"name": "lookup", "num_tables": 8, ...}``: a registered feed-forward's name and options. After
            construction it holds every option, defaults resolved, and so does config.json. GEMM if None.
        position_init: how the learned position embeddings start: "normal", as BERT's, or "sinusoidal" (Vaswani et al.,
            arXiv 1706.03762, section 3.5, scaled to initializer_range), from which attention finds neighbours sooner.
        attention_init: how attention's matrices start: "normal", as BERT's, or "mimetic" (see initialization.py), from
            which, with sinusoidal positions, it looks at neighbours at once.

    Raises:
        UserError: an unknown feed-forward or option, or a value it cannot have.
    """

    model_type = "lookup-roberta"

    ffn: dict | None = None
    use_cache: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"model: hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads}"
            )
        starts = {field.name: getattr(self, field.name) for field in fields(InitialisationSettings)}
        read(InitialisationSettings, starts, "model.", "option of model")
        options = dict(self.ffn or {"name": "gemm"})
        if "name" not in options:
            raise UserError('ffn has no name; give a dictionary such as {"name": "lookup", "num_tables": 8}')
        name = options.pop("name")
        for shared in ffn_class(name).Options.shared():
            if options.get(shared) is None:
                options[shared] = getattr(self, shared)
        self.ffn = {"name": name, **asdict(resolve_options(name, self.hidden_size, options))}


def build_model_config(
    model: Mapping[str, Any], ffn: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
) -> LookupRobertaConfig:
    """The configuration of a run's model.

    Args:
        model: the values of a configs/model file.
        ffn: the values of a configs/ffn file.
        tokenizer: gives the vocabulary and the special tokens.

    Raises:
        UserError: an unknown option of the model, a value that it cannot have, or a feed-forward that cannot be.
    """
    own = {field.name for field in fields(ModelSettings)}
    # +model.tie_word_embeddings=false: transformers' own options, which transformers checks
    more = {field.name for field in fields(LookupRobertaConfig)} & model.keys() - own
    settings = read_section("model", {name: value for name, value in model.items() if name not in more})
    pad = tokenizer.pad_token_id
    return LookupRobertaConfig(
        **{name: getattr(settings, name) for name in ModelSettings.architecture()},
        **{name: model[name] for name in more},
        ffn=dict(ffn),
        vocab_size=len(tokenizer),
        # RoBERTa counts positions from the padding index upwards
        max_position_embeddings=settings.max_positions + pad + 1,
        type_vocab_size=1,
        pad_token_id=pad,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
