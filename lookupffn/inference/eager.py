"""The encoder in torch's own operations, without transformers' overhead: float32 and bfloat16.

Dimensions: B sequences, L tokens a sequence, M tokens that are not padding, d hidden size, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lookupffn.layers.ffn.lookup import LookupFFN
from lookupffn.models import LookupRobertaModel
from lookupffn.models.modeling import attention_projections


class TorchEncoder:
    """Fused QKV products, SDPA, the feed-forwards as they are; tokens of padding are dropped before the first layer."""

    def __init__(self, model: LookupRobertaModel, lm_head: nn.Module | None = None, dtype: torch.dtype = torch.float32):
        self.precision = str(dtype).removeprefix("torch.")
        self.dtype = dtype
        self.heads = model.config.num_attention_heads
        self.embeddings = model.embeddings
        self.layers = [self._layer(layer) for layer in model.encoder.layer]
        self.norm = self._cast(model.LayerNorm)
        self.lm_head = None if lm_head is None else self._cast(lm_head)

    def _cast(self, module: nn.Module) -> nn.Module:
        same = all(p.dtype is self.dtype for p in module.parameters())
        return module if same else copy.deepcopy(module).to(self.dtype)

    def _prepared(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        module = self._cast(module)
        return module.prepared() if isinstance(module, LookupFFN) else module

    def _layer(self, layer: nn.Module) -> tuple[Callable[[Tensor], Tensor], ...]:
        *parts, output = attention_projections(layer.attention)
        rest = (layer.attention.LayerNorm, output, layer.ffn_layer_norm, layer.ffn)
        return self._query_key_value(parts), *(self._prepared(module) for module in rest)

    def _query_key_value(self, parts: Sequence[nn.Module]) -> Callable[[Tensor], Tensor]:
        """[M, d] to [M, 3d]."""
        if any(isinstance(part, LookupFFN) for part in parts):
            functions = [self._prepared(part) for part in parts]
            return lambda x: torch.cat([function(x) for function in functions], 1)
        weight = torch.cat([part.weight.detach() for part in parts]).to(self.dtype)
        bias = torch.cat([part.bias.detach() for part in parts]).to(self.dtype)
        return lambda x: F.linear(x, weight, bias)

    @torch.inference_mode()
    def encode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Last hidden state [B, L, d] of [B, L] arguments; zeros where the mask is 0."""
        B, L = input_ids.shape
        h = self.embeddings(input_ids, token_type_ids, position_ids).to(self.dtype).flatten(0, 1)
        kept = mask = None
        if attention_mask is not None:
            keep = attention_mask != 0
            if not bool(keep.all()):
                kept, mask = keep.flatten().nonzero().squeeze(1), keep[:, None, None, :]
                h = h[kept]
        for qkv, attention_norm, output, ffn_norm, ffn in self.layers:
            h = h + output(self._attention(qkv(attention_norm(h)), B, L, kept, mask))
            h = h + ffn(ffn_norm(h))
        h = self.norm(h)
        if kept is not None:
            h = h.new_zeros(B * L, h.shape[1]).index_copy_(0, kept, h)
        return h.view(B, L, -1).float()

    def _attention(self, qkv: Tensor, B: int, L: int, kept: Tensor | None, mask: Tensor | None) -> Tensor:
        """[M, 3d] to [M, d]."""
        if kept is not None:
            qkv = qkv.new_zeros(B * L, qkv.shape[1]).index_copy_(0, kept, qkv)
        q, k, v = qkv.view(B, L, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(B * L, -1)
        return out if kept is None else out[kept]

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """[..., d] to the language-model head's [..., V]."""
        # not through the module, whose forward this may have become
        return type(self.lm_head).forward(self.lm_head, hidden.to(self.dtype)).float()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # nothing in it changes
