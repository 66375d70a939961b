"""``model.optimize_for_inference``: a fast encoder put under a model, in place.

The model keeps its float weights, so ``save_pretrained`` saves what was loaded; the encoder has packed copies.
"""

from __future__ import annotations

import logging
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

from lookupffn.errors import UserError, unknown_name
from lookupffn.inference.eager import TorchEncoder
from lookupffn.inference.native import Declined, NativeEncoder
from lookupffn.models.modeling import LookupRobertaPreTrainedModel

logger = logging.getLogger(__name__)

PRECISIONS = ("float32", "bfloat16", "int8")


def optimize_for_inference(model: LookupRobertaPreTrainedModel, precision: str = "float32") -> None:
    """See ``LookupRobertaPreTrainedModel.optimize_for_inference``."""
    if precision not in PRECISIONS:
        raise unknown_name("precision of optimize_for_inference", precision, PRECISIONS)
    base, lm_head = model.base_model, getattr(model, "lm_head", None)
    # what an earlier call put there
    for module in (model, base, lm_head):
        if module is not None:
            module.__dict__.pop("forward", None)
    model.__dict__.pop("train", None)
    model.eval()
    encoder = _encoder(base, lm_head, precision)
    model.requires_grad_(False)
    for module in {model, base}:
        module.train = _NoTraining(module)
        module.register_load_state_dict_pre_hook(_refuse_loading)
    base.forward = _EncoderForward(base, encoder)
    if lm_head is not None:
        lm_head.forward = encoder.logits


def _encoder(base: nn.Module, lm_head: nn.Module | None, precision: str) -> NativeEncoder | TorchEncoder:
    if precision == "int8":
        try:
            return NativeEncoder(base, lm_head)
        except Declined as reason:
            logger.warning("int8 inference is not available here, float32 runs instead: %s", reason)
    return TorchEncoder(base, lm_head, torch.bfloat16 if precision == "bfloat16" else torch.float32)


def _refuse_loading(module: nn.Module, *_: Any) -> NoReturn:
    raise UserError("the model is optimised for inference and would not see new weights: load them into a new model")


class _NoTraining:
    """In place of a module's ``train``."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, mode: bool = True) -> nn.Module:
        if mode:
            raise UserError("the model is optimised for inference and cannot be trained: load it anew")
        return self.module


class _EncoderForward:
    """In place of the base model's ``forward``."""

    def __init__(self, module: nn.Module, encoder: NativeEncoder | TorchEncoder) -> None:
        self.module = module
        self.encoder = encoder

    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> BaseModelOutputWithPoolingAndCrossAttentions | tuple:
        asked = [name for name, value in others.items() if value is not None and value is not False]
        if asked or input_ids is None:
            what = ", ".join(asked) or "a call without input_ids"
            raise UserError(f"the model is optimised for inference, which does not offer {what}: load it anew for that")
        if input_ids.dim() != 2 or (attention_mask is not None and attention_mask.shape != input_ids.shape):
            raise UserError("an optimised model takes input_ids and attention_mask of one shape [sequences, tokens]")
        if position_ids is None:
            position_ids = self.module.positions(input_ids, attention_mask)
        hidden = self.encoder.encode(input_ids, attention_mask, token_type_ids, position_ids)
        pooler = self.module.pooler
        pooled = None if pooler is None else pooler(hidden.to(pooler.dense.weight.dtype))
        if not (self.module.config.return_dict if return_dict is None else return_dict):
            return (hidden,) if pooled is None else (hidden, pooled)
        return BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=hidden, pooler_output=pooled)
