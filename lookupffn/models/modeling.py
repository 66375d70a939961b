"""transformers' pre-norm RoBERTa with the feed-forward of each layer replaced by one chosen by name.

Everything else (embeddings, SDPA attention, heads, loading and saving) is transformers' own code.

Dimensions: B sequences, L tokens a sequence, P masked positions a sequence, d hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import (
    RobertaPreLayerNormForMaskedLM,
    RobertaPreLayerNormForSequenceClassification,
    RobertaPreLayerNormForTokenClassification,
    RobertaPreLayerNormModel,
    RobertaPreLayerNormPreTrainedModel,
    initialization,
)
from transformers.modeling_outputs import MaskedLMOutput
from transformers.models.roberta_prelayernorm.modeling_roberta_prelayernorm import (
    RobertaPreLayerNormAttention,
    RobertaPreLayerNormEmbeddings,
    RobertaPreLayerNormLayer,
)

from lookupffn import cost
from lookupffn.layers import FeedForward, build_ffn, feed_forwards_in
from lookupffn.models.configuration import LookupRobertaConfig
from lookupffn.models.initialization import mimetic_attention, sinusoids


class LookupRobertaLayer(RobertaPreLayerNormLayer):
    """A pre-norm encoder layer: x + attention(LN(x)), then h + dropout(ffn(LN(h)))."""

    def __init__(self, config: LookupRobertaConfig, layer_idx: int | None = None) -> None:
        super().__init__(config, layer_idx)
        del self.intermediate, self.output  # the two halves of the stock GEMM feed-forward
        options = dict(config.ffn)
        self.ffn_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.ffn = build_ffn(options.pop("name"), hidden_size=config.hidden_size, **options)
        self.ffn_dropout = nn.Dropout(config.hidden_dropout_prob)

    def feed_forward_chunk(self, attention_output: Tensor) -> Tensor:
        """[B, L, d] to [B, L, d]."""
        return attention_output + self.ffn_dropout(self.ffn(self.ffn_layer_norm(attention_output)))


class LookupRobertaPreTrainedModel(RobertaPreLayerNormPreTrainedModel):
    """What all LookupRoberta models share."""

    config_class = LookupRobertaConfig
    config: LookupRobertaConfig
    # set by lookupffn.inference, which stands on this floor
    _optimizer: ClassVar[Callable[[Any, str], None]]

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
            own = module.self
            mimetic_attention(own.query, own.key, own.value, module.output.dense, self.config.num_attention_heads)

    def feed_forwards(self) -> list[FeedForward]:
        """Every module under the feed-forward contract, from the first layer to the last."""
        return list(feed_forwards_in(self))

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
                bfloat16). Where int8 cannot be had a warning says why, and float32 runs.

        Raises:
            UserError: another precision.
        """
        type(self)._optimizer(self, precision)
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
                cost.attention(c.hidden_size, sequence_length).scaled(c.num_hidden_layers).prefixed("attention"),
                cost.embeddings(c.hidden_size, c.vocab_size, c.max_position_embeddings, c.type_vocab_size),
                norms,
                cost.lm_head(c.hidden_size, c.vocab_size, mask_rate),
            ]
        )


def attach_optimizer(optimizer: Callable[[LookupRobertaPreTrainedModel, str], None]) -> None:
    """Make ``optimizer`` what ``optimize_for_inference`` calls: it stands on a floor above."""
    LookupRobertaPreTrainedModel._optimizer = staticmethod(optimizer)


class LookupRobertaModel(LookupRobertaPreTrainedModel, RobertaPreLayerNormModel):
    """The encoder without a head."""

    def __init__(self, config: LookupRobertaConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config, add_pooling_layer)
        self.encoder.layer = nn.ModuleList(LookupRobertaLayer(config, i) for i in range(config.num_hidden_layers))
        self.post_init()


class _OnLookupEncoder(LookupRobertaPreTrainedModel):
    """Mixin before a stock head class: the same head on a LookupRobertaModel."""

    def __init__(self, config: LookupRobertaConfig) -> None:
        super().__init__(config)
        pooler = self.roberta_prelayernorm.pooler is not None
        self.roberta_prelayernorm = LookupRobertaModel(config, add_pooling_layer=pooler)
        self.post_init()


class LookupRobertaForSequenceClassification(_OnLookupEncoder, RobertaPreLayerNormForSequenceClassification):
    """Sentence classification or regression, transformers' head."""


class LookupRobertaForTokenClassification(_OnLookupEncoder, RobertaPreLayerNormForTokenClassification):
    """Token classification, transformers' head."""


class LookupRobertaForMaskedLM(_OnLookupEncoder, RobertaPreLayerNormForMaskedLM):
    """Masked language modelling; with labels, the head runs on the masked positions only."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        masked_positions: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> MaskedLMOutput | tuple:
        """Predict masked tokens.

        Args:
            input_ids: [B, L].
            attention_mask: [B, L], 0 where padded.
            token_type_ids: [B, L].
            position_ids: [B, L].
            inputs_embeds: [B, L, d], instead of input_ids.
            labels: [B, L] with -100 where not masked, or [B, P] beside ``masked_positions``.
            masked_positions: [B, P], where the head runs. The shape is fixed, so unlike a label of -100 it needs no
                synchronisation with a GPU.
            return_dict: as everywhere in transformers.
            **kwargs: passed to the encoder (output_hidden_states, output_attentions).

        Returns:
            loss: mean cross-entropy in nats over labelled positions, None without labels.
            logits: [B, L, V] without labels and positions; [B, P, V] with positions; with labels of [B, L],
                [labelled positions, V] in the order of the flattened labels.
        """
        outputs = self.roberta_prelayernorm(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            return_dict=True,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        if masked_positions is not None:
            hidden = hidden.gather(1, masked_positions.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
        elif labels is not None:
            labelled = labels != -100
            hidden, labels = hidden[labelled], labels[labelled]
        logits = self.lm_head(hidden)
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits.flatten(0, -2).float(), labels.flatten().to(logits.device))
        result = MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )
        return result if (self.config.return_dict if return_dict is None else return_dict) else result.to_tuple()


def load_stock_weights(
    model: LookupRobertaForMaskedLM, stock: RobertaPreLayerNormForMaskedLM
) -> tuple[list[str], list[str]]:
    """Copy a stock pre-norm RoBERTa's weights into ``model``: all of them with ``ffn=gemm``, else all but the FFNs'.

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
