"""A model in operations that every engine has: what ``lookupffn-export`` writes.

The lookup's projection is one matrix, its codes are sums of powers of two, and its rows are gathered and added: no
custom operation is needed, at the price of the memory that the gathered rows take.

Dimensions: B sequences, L tokens, M = B * L, d hidden size, T tables of S = 2^tau rows, N probes.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lookupffn.errors import UserError
from lookupffn.layers.ffn.lookup import LookupFFN
from lookupffn.models.modeling import LookupRobertaPreTrainedModel, attention_projections

MOST_PROBES = 4


class StandardLookup(nn.Module):
    """LookupFFN without kernels.

    OpenVINO's EmbeddingBag would add rows as it reads them, but does not compile with dynamic shapes after NNCF.
    """

    def __init__(self, ffn: LookupFFN) -> None:
        super().__init__()
        o = ffn.options
        if o.num_probes > MOST_PROBES:
            raise UserError(f"export takes at most {MOST_PROBES} probes, not {o.num_probes}")
        self.shape = (o.num_tables, o.bits)
        self.table_size, self.probes, self.kept = o.table_size, o.num_probes, o.normaliser == "kept"
        with torch.no_grad():
            offset = ffn.projection_bias.detach().float()
            unit = torch.eye(ffn.in_features, dtype=ffn.projection.dtype)
            self.hash = nn.Linear(ffn.in_features, offset.numel())
            self.hash.weight.copy_(ffn.hash_inputs(unit).flatten(1).float().sub(offset).t())
            self.hash.bias.copy_(offset)
            table = ffn.table.float() if ffn.table_scales is None else ffn.table * ffn.table_scales.unsqueeze(-1)
        self.register_buffer("table", table.detach().flatten(0, 1).contiguous())
        self.register_buffer("bias", ffn.bias.detach().float())
        self.register_buffer("powers", 2.0 ** torch.arange(o.bits))
        self.register_buffer("first_rows", torch.arange(o.num_tables, dtype=torch.float32)[:, None] * o.table_size)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, d] to the same."""
        z_MTt = self.hash(x.flatten(0, 1)).unflatten(-1, self.shape)
        magnitude = z_MTt.abs()
        signs = (z_MTt > 0).to(z_MTt.dtype)
        codes = [(signs * self.powers).sum(-1, keepdim=True)]
        masses = [torch.zeros_like(codes[0])]
        if self.probes > 1:
            least = min(self.probes - 1, self.shape[1])
            mass, bits = magnitude.topk(least, dim=-1, largest=False)
            # flipping a set bit takes its power away, another adds it
            change = self.powers[bits] * (1 - 2 * signs.gather(-1, bits))
            for n in range(min(least, 2)):
                codes.append(codes[0] + change[..., n : n + 1])
                masses.append(mass[..., n : n + 1])
            if self.probes == MOST_PROBES:
                both = mass[..., :1] + mass[..., 1:2]
                third, third_change = (mass[..., 2:], change[..., 2:]) if least > 2 else (both + 1, change[..., :1])
                single = third < both
                masses.append(torch.where(single, third, both))
                codes.append(codes[0] + torch.where(single, third_change, change[..., :1] + change[..., 1:2]))
        flipped = torch.cat(masses, -1)
        inner = magnitude.sum(-1, keepdim=True) - 2 * flipped
        if self.kept:
            scores = inner * inner.softmax(-1)
        else:
            normaliser = torch.log1p(torch.exp(-2 * magnitude)).sum(-1, keepdim=True)
            scores = inner * torch.exp(-2 * flipped - normaliser)
        rows = (torch.cat(codes, -1) + self.first_rows).flatten(1).long()
        y = torch.matmul(scores.flatten(1).unsqueeze(1), F.embedding(rows, self.table)).squeeze(1)
        return (y + self.bias).view(x.shape)


def _standard(module: nn.Module) -> nn.Module:
    return StandardLookup(module) if isinstance(module, LookupFFN) else copy.deepcopy(module)


class _StandardLayer(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.attention_norm, self.ffn_norm = layer.attention.LayerNorm, layer.ffn_layer_norm
        self.query, self.key, self.value, self.output = map(_standard, attention_projections(layer.attention))
        self.ffn = _standard(layer.ffn)


class StandardModel(nn.Module):
    """The encoder and its head, from input_ids and attention_mask [B, L] to logits, or to the last hidden state."""

    def __init__(self, model: LookupRobertaPreTrainedModel, *, head: bool = True) -> None:
        super().__init__()
        base = model.base_model
        self.heads = model.config.num_attention_heads
        em = base.embeddings
        self.padding = -1 if em.padding_idx is None else em.padding_idx  # none: positions count from 0
        self.words, self.positions, self.norm = em.word_embeddings, em.position_embeddings, em.LayerNorm
        self.register_buffer("token_type", em.token_type_embeddings.weight[0].detach())
        self.layers = nn.ModuleList(_StandardLayer(layer) for layer in base.encoder.layer)
        self.scaling = (model.config.hidden_size // self.heads) ** -0.5
        self.last_norm = base.LayerNorm
        self.head = None
        if head:
            self.head = getattr(model, "lm_head", None) or getattr(model, "classifier", None)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits, or [B, L, d] without a head."""
        real = (input_ids != self.padding).long()
        positions = real.cumsum(1) * real + self.padding
        h = self.norm(self.words(input_ids) + self.token_type + self.positions(positions))
        bias = (1 - attention_mask.to(h.dtype))[:, None, None, :] * -1e9
        for layer in self.layers:
            h = h + self._attention(layer, h, bias)
            h = h + layer.ffn(layer.ffn_norm(h))
        h = self.last_norm(h)
        return h if self.head is None else self.head(h)

    def _attention(self, layer: _StandardLayer, h: Tensor, bias: Tensor) -> Tensor:
        x = layer.attention_norm(h)
        q, k, v = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (layer.query, layer.key, layer.value)
        )
        shares = (torch.matmul(q, k.transpose(2, 3)) * self.scaling + bias).softmax(-1)
        return layer.output(torch.matmul(shares, v).transpose(1, 2).flatten(2))
