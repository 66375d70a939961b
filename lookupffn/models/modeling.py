"""transformers' pre-norm RoBERTa with the feed-forward of each layer replaced by one chosen by name.

Everything else (embeddings, SDPA attention, loading and saving) is transformers' own code.

Dimensions: B sequences, L tokens a sequence, d hidden size.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, RobertaPreLayerNormModel, RobertaPreLayerNormPreTrainedModel, initialization
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions
from transformers.models.roberta_prelayernorm.modeling_roberta_prelayernorm import (
    RobertaPreLayerNormAttention,
    RobertaPreLayerNormEmbeddings,
    RobertaPreLayerNormLayer,
    RobertaPreLayerNormLMHead,
)

from lookupffn import cost
from lookupffn.errors import UserError
from lookupffn.layers import FeedForward, build_ffn
from lookupffn.models.configuration import LookupRobertaConfig
from lookupffn.models.initialization import identity_transform, mimetic_attention, sinusoids
from lookupffn.models.state_dict import check_local_folder, lay_out_as_new


class LookupRobertaLayer(RobertaPreLayerNormLayer):
    """A pre-norm encoder layer: x + attention(LN(x)), then h + dropout(ffn(LN(h)))."""

    def __init__(self, config: LookupRobertaConfig, layer_idx: int | None = None) -> None:
        super().__init__(config, layer_idx)
        del self.intermediate, self.output  # the two halves of the stock GEMM feed-forward
        # stock code refuses lengths that are no multiple of it: chunks are cut below
        self.chunk_tokens, self.chunk_size_feed_forward = self.chunk_size_feed_forward, 0
        if config.attention_projection == "lookup":
            self._project_by_lookup(config)
        options = dict(config.ffn)
        self.ffn_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.ffn = build_ffn(options.pop("name"), hidden_size=config.hidden_size, **options)
        self.ffn_dropout = nn.Dropout(config.hidden_dropout_prob)

    def _project_by_lookup(self, config: LookupRobertaConfig) -> None:
        own = self.attention.self
        own.query, own.key, own.value, self.attention.output.dense = (
            build_ffn("lookup", hidden_size=config.hidden_size, **config.attention_lookup) for _ in range(4)
        )

    def feed_forward_chunk(self, attention_output: Tensor) -> Tensor:
        """[B, L, d] to [B, L, d]."""
        x = self.ffn_layer_norm(attention_output)
        # not in training: it would save nothing, and a router's capacity or auxiliary loss is of the whole batch
        if self.chunk_tokens and not self.training:
            y = torch.cat([self.ffn(chunk) for chunk in x.split(self.chunk_tokens, dim=1)], dim=1)
        else:
            y = self.ffn(x)
        return attention_output + self.ffn_dropout(y)


class LookupRobertaPreTrainedModel(RobertaPreLayerNormPreTrainedModel):
    """What all LookupRoberta models share."""

    config_class = LookupRobertaConfig
    config: LookupRobertaConfig

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path | None,
        *args: Any,
        config: PreTrainedConfig | str | Path | None = None,
        **kwargs: Any,
    ) -> Self:
        """As transformers'.

        Raises:
            UserError: a local folder's weights are not of the shapes that its config.json describes; nothing of the
                model has been made.
        """
        if not kwargs.get("ignore_mismatched_sizes"):
            check_local_folder(pretrained_model_name_or_path, cls, config)
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, config=config, **kwargs)
        lay_out_as_new(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Nothing to do: saved folders name the package that has the classes, they do not hold a copy of them."""

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # as custom code, modules without parameters of their own would be passed over: some feed-forwards are such
        super()._initialize_weights(module, is_custom_code=False)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        # After its children: a feed-forward knows its own initialisation, also of Linear layers inside it.
        if isinstance(module, FeedForward):
            module.reset_parameters(self.config.initializer_range)
        elif isinstance(module, RobertaPreLayerNormEmbeddings) and self.config.position_init == "sinusoidal":
            weight = module.position_embeddings.weight
            initialization.copy_(weight, sinusoids(*weight.shape, std=self.config.initializer_range).to(weight))
        elif isinstance(module, RobertaPreLayerNormAttention) and self.config.attention_init == "mimetic":
            c = self.config
            positions = c.max_position_embeddings if c.position_init == "sinusoidal" else None
            mimetic_attention(*attention_projections(module), c.num_attention_heads, positions)
        elif isinstance(module, RobertaPreLayerNormLMHead) and self.config.head_init == "identity":
            identity_transform(module.dense)

    def feed_forwards(self) -> list[FeedForward]:
        """The feed-forward of each layer, from the first to the last; not the lookups that project for attention."""
        return [layer.ffn for layer in self.base_model.encoder.layer]

    def quantize_tables(self) -> None:
        """Round the tables of every lookup feed-forward to int8; ``save_pretrained`` then saves them so."""
        for ffn in self.feed_forwards():
            if hasattr(ffn, "quantize_tables"):
                ffn.quantize_tables()
                self.config.ffn["table_type"] = ffn.options.table_type

    def optimize_for_inference(self, precision: str = "float32") -> Self:
        """Put a fast encoder under the model, in place; it is then called as before.

        The encoder keeps its own copies of the weights: ``save_pretrained`` still saves those that were loaded. Hidden
        states of padding become zeros. Training and loading weights are refused, and so are arguments other than
        input_ids, attention_mask, token_type_ids, position_ids and what the head takes.

        Args:
            precision: "float32", "bfloat16", or "int8" (weights rounded once, activations at every call; attention in
                bfloat16). Where int8 is not available a warning says why, and float32 runs.

        Raises:
            UserError: another precision.
        """
        # a floor above this one, so it is found by name when it is first needed
        importlib.import_module("lookupffn.inference").optimize_for_inference(self, precision)
        return self

    def auxiliary_losses(self) -> dict[str, Tensor]:
        """Auxiliary losses of the last forward by name, each the sum over layers; empty for most feed-forwards."""
        collected: dict[str, list[Tensor]] = {}
        for ffn in self.feed_forwards():
            for name, loss in ffn.auxiliary_losses().items():
                collected.setdefault(name, []).append(loss)
        return {name: torch.stack(losses).sum() for name, losses in collected.items()}

    @contextmanager
    def collecting_statistics(self) -> Iterator[None]:
        """Evaluations inside the block gather what ``statistics`` reports, from nothing."""
        for ffn in self.feed_forwards():
            ffn.collect_statistics(True)
        try:
            yield
        finally:
            for ffn in self.feed_forwards():
                ffn.collect_statistics(False)

    def statistics(self) -> dict[str, float]:
        """How the feed-forwards were used when last collected, by name, each the mean over layers."""
        collected: dict[str, list[float]] = {}
        for ffn in self.feed_forwards():
            for name, value in ffn.statistics().items():
                collected.setdefault(name, []).append(value)
        return {name: sum(values) / len(values) for name, values in collected.items()}

    def ffn_cost(self) -> cost.Cost:
        """Cost of one token in the feed-forwards of all layers."""
        return cost.total(ffn.cost() for ffn in self.feed_forwards())

    def gemm_ffn_cost(self) -> cost.Cost:
        """What ``ffn_cost`` would be with GEMM feed-forwards of the configuration's intermediate size."""
        one = cost.gemm_ffn(self.config.hidden_size, self.config.intermediate_size)
        return one.scaled(self.config.num_hidden_layers)

    def _attention_cost(self, sequence_length: int) -> cost.Cost:
        """Of one token in the attention of one layer."""
        projections = None
        if self.config.attention_projection == "lookup":
            attention = self.base_model.encoder.layer[0].attention
            projections = cost.total(lookup.cost() for lookup in attention_projections(attention))
        return cost.attention(self.config.hidden_size, sequence_length, projections)

    def cost(self, sequence_length: int, mask_rate: float = 0.15) -> cost.Cost:
        """Cost of one token in the whole masked language model.

        Args:
            sequence_length: tokens attention runs over.
            mask_rate: share of positions the LM head runs on.
        """
        c = self.config
        norms = cost.layer_norm(c.hidden_size).scaled(2 * c.num_hidden_layers + 2)
        return cost.total(
            [
                self.ffn_cost().prefixed("ffn"),
                self._attention_cost(sequence_length).scaled(c.num_hidden_layers).prefixed("attention"),
                cost.embeddings(c.hidden_size, c.vocab_size, c.max_position_embeddings, c.type_vocab_size),
                norms,
                cost.lm_head(c.hidden_size, c.vocab_size, mask_rate),
            ]
        )


def attention_projections(attention: RobertaPreLayerNormAttention) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
    """What gives queries, keys, values and the output: nn.Linear, or LookupFFN."""
    own = attention.self
    return own.query, own.key, own.value, attention.output.dense


@contextmanager
def stock_padding(config: LookupRobertaConfig) -> Iterator[None]:
    """Stock constructors inside the block see a padding id only where they would count positions as ``config`` does."""
    pad = config.pad_token_id
    if not config.stock_positions:
        config.pad_token_id = None
    try:
        yield
    finally:
        config.pad_token_id = pad


class LookupRobertaModel(LookupRobertaPreTrainedModel, RobertaPreLayerNormModel):
    """The encoder without a head."""

    def __init__(self, config: LookupRobertaConfig, add_pooling_layer: bool = True) -> None:
        with stock_padding(config):
            super().__init__(config, add_pooling_layer)
        self.encoder.layer = nn.ModuleList(LookupRobertaLayer(config, i) for i in range(config.num_hidden_layers))
        if config.pad_token_id is not None and not config.stock_positions:
            words = self.embeddings.word_embeddings
            words.padding_idx = config.pad_token_id
            initialization.zeros_(words.weight.data[config.pad_token_id])
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPoolingAndCrossAttentions | tuple:
        """As RobertaPreLayerNormModel's, which see; positions count from ``config.first_position``.

        Raises:
            UserError: a sequence has more tokens than the model has positions.
        """
        if position_ids is None:
            position_ids = self.positions(input_ids, attention_mask, inputs_embeds)
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )

    def positions(
        self, input_ids: Tensor | None, attention_mask: Tensor | None = None, inputs_embeds: Tensor | None = None
    ) -> Tensor | None:
        """[B, L] rows of the position embeddings; None where the stock embeddings count them as this model does.

        Raises:
            UserError: a sequence has more tokens than the model has positions.
        """
        tokens = input_ids if input_ids is not None else inputs_embeds
        if tokens is None:  # for the stock model to refuse
            return None
        real_BL = self._real_tokens(input_ids, attention_mask)
        self._check_length(tokens.shape[1], real_BL)
        if self.config.stock_positions:
            return None
        first = self.config.first_position
        if real_BL is None:
            return torch.arange(first, first + tokens.shape[1], device=tokens.device).expand(tokens.shape[:2])
        real = real_BL.long()
        # padding, which nothing attends to, has the row before the first
        return (real.cumsum(1) * real + (first - 1)).clamp(min=0)

    def _real_tokens(self, input_ids: Tensor | None, attention_mask: Tensor | None) -> Tensor | None:
        """[B, L], False where padded; None where that cannot be told and every token counts."""
        pad = self.config.pad_token_id
        if pad is not None:
            return None if input_ids is None else input_ids.ne(pad)
        return attention_mask.bool() if attention_mask is not None and attention_mask.dim() == 2 else None

    def _check_length(self, length: int, real_BL: Tensor | None) -> None:
        longest = self.config.max_positions
        if length > longest and (real_BL is None or int(real_BL.sum(1).max()) > longest):
            raise UserError(
                f"a sequence of {length} tokens is longer than the model's {longest} positions: cut it, for example "
                f"with the tokenizer's truncation=True, max_length={longest}"
            )
