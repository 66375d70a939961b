"""The encoder with transformers' heads, and losses as transformers' Trainer expects them.

Trainer counts the labelled items of all micro-batches of a step and hands the number to each of them: the loss is then
the micro-batch's sum over that number, so that accumulating gradients changes neither loss nor gradient. The
feed-forwards' auxiliary losses are part of that loss; a loop of one's own adds ``auxiliary_losses`` to the mean.

Dimensions: B sequences, L tokens a sequence, P masked positions a sequence, C choices, n labels, d hidden size,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from transformers import (
    RobertaPreLayerNormForMaskedLM,
    RobertaPreLayerNormForMultipleChoice,
    RobertaPreLayerNormForQuestionAnswering,
    RobertaPreLayerNormForSequenceClassification,
    RobertaPreLayerNormForTokenClassification,
)
from transformers.modeling_outputs import MaskedLMOutput, ModelOutput

from lookupffn.models.configuration import LookupRobertaConfig
from lookupffn.models.modeling import LookupRobertaModel, LookupRobertaPreTrainedModel, stock_padding

_IGNORED = -100
Items: TypeAlias = Tensor | int | None


def _reduced(loss: Callable[..., Tensor], predicted: Tensor, target: Tensor, items: Items, **options: Any) -> Tensor:
    """The mean over labelled items, or their sum over ``items``."""
    target = target.to(predicted.device)
    if items is None:
        return loss(predicted, target, **options)
    items = items.to(predicted.device) if isinstance(items, Tensor) else items
    return loss(predicted, target, reduction="sum", **options) / items


class _OnLookupEncoder(LookupRobertaPreTrainedModel):
    """Mixin before a stock head class: the same head on a LookupRobertaModel, and its loss by ``_loss``."""

    def __init__(self, config: LookupRobertaConfig) -> None:
        with stock_padding(config):
            super().__init__(config)
        pooler = self.roberta_prelayernorm.pooler is not None
        self.roberta_prelayernorm = LookupRobertaModel(config, add_pooling_layer=pooler)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Items = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> ModelOutput | tuple:
        """As the stock class's, which see; also for num_items_in_batch.

        Args:
            input_ids: [B, L], or [B, C, L] with choices; so are the next four, ``inputs_embeds`` with another d.
            attention_mask: 0 where padded.
            token_type_ids: see input_ids.
            position_ids: see input_ids.
            inputs_embeds: instead of input_ids.
            labels: as the stock class takes them.
            num_items_in_batch: what the summed loss is divided by, and with which, in training, the feed-forwards'
                auxiliary losses are added in proportion; if None the loss is the mean, and alone.
            return_dict: as everywhere in transformers.
            **kwargs: passed to the encoder (output_hidden_states, output_attentions).
        """
        output = super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            return_dict=True,
            **kwargs,
        )
        loss = None
        if labels is not None:
            loss = self._loss(output.logits, labels, num_items_in_batch)
            loss = self._with_auxiliary(loss, labels, num_items_in_batch)
        return self._answer(type(output)(**{**output, "loss": loss}), return_dict)

    def _loss(self, logits: Tensor, labels: Tensor, items: Items) -> Tensor:
        return _reduced(cross_entropy, logits.flatten(0, -2).float(), labels.flatten(), items)

    def _with_auxiliary(self, loss: Tensor, labels: Tensor, items: Items) -> Tensor:
        auxiliary = self.auxiliary_losses().values() if self.training and items is not None else ()
        return sum(((labels != _IGNORED).sum().to(loss.device) / items * one for one in auxiliary), loss)

    def _answer(self, output: ModelOutput, return_dict: bool | None) -> ModelOutput | tuple:
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()


class LookupRobertaForSequenceClassification(_OnLookupEncoder, RobertaPreLayerNormForSequenceClassification):
    """Sentence classification or regression, transformers' head. labels: [B], or [B, n] for several at a time."""

    def _loss(self, logits: Tensor, labels: Tensor, items: Items) -> Tensor:
        config = self.config
        if config.problem_type is None:
            integers = labels.dtype in (torch.long, torch.int)
            several = "single_label_classification" if integers else "multi_label_classification"
            config.problem_type = "regression" if config.num_labels == 1 else several
        if config.problem_type == "single_label_classification":
            return super()._loss(logits, labels, items)
        loss = mse_loss if config.problem_type == "regression" else binary_cross_entropy_with_logits
        return _reduced(loss, logits.float(), labels.view(logits.shape).float(), items)


class LookupRobertaForTokenClassification(_OnLookupEncoder, RobertaPreLayerNormForTokenClassification):
    """Token classification, transformers' head. labels: [B, L]."""


class LookupRobertaForMultipleChoice(_OnLookupEncoder, RobertaPreLayerNormForMultipleChoice):
    """Choosing one of C continuations, transformers' head. labels: [B]; logits [B, C]."""


class LookupRobertaForQuestionAnswering(_OnLookupEncoder, RobertaPreLayerNormForQuestionAnswering):
    """The span that answers a question, transformers' head."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        num_items_in_batch: Items = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> ModelOutput | tuple:
        """As the other heads'; the labels are ``start_positions`` and ``end_positions`` [B], beyond L where there is
        no answer."""
        output = super().forward(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, return_dict=True, **kwargs
        )
        if start_positions is not None and end_positions is not None:
            both = [(output.start_logits, start_positions), (output.end_logits, end_positions)]
            losses = [
                _reduced(
                    cross_entropy,
                    logits.float(),
                    labels.flatten().clamp(0, logits.shape[1]),
                    num_items_in_batch,
                    ignore_index=logits.shape[1],
                )
                for logits, labels in both
            ]
            loss = self._with_auxiliary(sum(losses) / 2, start_positions, num_items_in_batch)
            output = type(output)(**{**output, "loss": loss})
        return self._answer(output, return_dict)


class LookupRobertaForMaskedLM(_OnLookupEncoder, RobertaPreLayerNormForMaskedLM):
    """Masked language modelling, transformers' head, which may run on the masked positions only."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        masked_positions: Tensor | None = None,
        num_items_in_batch: Items = None,
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
            masked_positions: [B, P], where the head runs; everywhere if None. Of several times the head's cost at L.
            num_items_in_batch: see the other heads'.
            return_dict: as everywhere in transformers.
            **kwargs: passed to the encoder (output_hidden_states, output_attentions).

        Returns:
            loss: mean cross-entropy in nats over labelled positions, None without labels; see num_items_in_batch.
            logits: [B, L, V], or [B, P, V] with ``masked_positions``.
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
        logits = self.lm_head(hidden)
        loss = None
        if labels is not None:
            loss = self._loss(logits, labels, num_items_in_batch)
            loss = self._with_auxiliary(loss, labels, num_items_in_batch)
        return self._answer(
            MaskedLMOutput(
                loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
            ),
            return_dict,
        )
