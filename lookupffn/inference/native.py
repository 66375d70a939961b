"""The encoder as one C++ operation (csrc/), in int8.

Dimensions: B sequences, L tokens a sequence, d hidden size, V vocabulary.
"""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from lookupffn.errors import UserError, unknown_name
from lookupffn.layers.ffn.gemm import GemmFFN
from lookupffn.layers.ffn.lookup import LookupFFN
from lookupffn.layers.ffn.none import NoneFFN
from lookupffn.models import LookupRobertaModel
from lookupffn.ops import quantized
from lookupffn.ops.build import Sources
from lookupffn.ops.library import CSRC, KERNELS, NativeLibrary
from lookupffn.ops.lookup.cpu import declines_options

LIBRARY = NativeLibrary(Sources("lookupffn-encoder", Path(__file__).parent / "csrc", (CSRC,)), (KERNELS,))
# Int8Level in csrc/int8_product.h
LEVELS = ("plain", "avx2", "vnni256", "vnni512", "amx")
_MOST_ROWS = 1 << 25  # of all tables of a layer
_ACTIVATIONS = {"gelu": 0, "relu": 1}
_NORM = "Tensor gain, Tensor bias, float eps"
for _name, _schema in {
    "int8_level_served": "(int level) -> bool",
    "encoder_new": "(int hidden, int heads, int layers, int level, bool exact_attention) -> int",
    "encoder_free": "(int handle) -> ()",
    "encoder_embeddings": f"(int handle, Tensor words, Tensor positions, Tensor types, int padding, {_NORM}) -> ()",
    "encoder_attention": f"(int handle, int layer, {_NORM}, Tensor qkv, Tensor qkv_bias, Tensor output, "
    "Tensor output_bias) -> ()",
    "encoder_gemm": f"(int handle, int layer, {_NORM}, Tensor up, Tensor up_bias, Tensor down, Tensor down_bias, "
    "int activation) -> ()",
    "encoder_lookup": f"(int handle, int layer, {_NORM}, Tensor projection, Tensor projection_bias, "
    "Tensor table, Tensor scales, Tensor ffn_bias, float alpha, int num_probes) -> ()",
    "encoder_norm": f"(int handle, {_NORM}) -> ()",
    "encoder_head": f"(int handle, Tensor dense, Tensor dense_bias, {_NORM}, Tensor decoder, "
    "Tensor decoder_bias) -> ()",
    "encoder_run": "(int handle, Tensor ids, Tensor? mask, Tensor? types, Tensor? positions) -> Tensor",
    "encoder_logits": "(int handle, Tensor rows) -> Tensor",
    "encoder_bytes": "(int handle) -> int",
}.items():
    torch.library.define(f"lookupffn::{_name}", _schema)
_ops = torch.ops.lookupffn


class Declined(Exception):
    """Why the C++ encoder does not take a model; one line."""


def served_levels() -> list[str]:
    """The instruction sets, from the slowest, for which this build and CPU have an int8 product."""
    return [name for index, name in enumerate(LEVELS) if _ops.int8_level_served(index)]


def _level() -> int:
    """LOOKUPFFN_INT8: one of LEVELS; -1, the best, if unset."""
    name = os.environ.get("LOOKUPFFN_INT8", "auto")
    if name == "auto":
        return -1
    if name not in LEVELS:
        raise unknown_name("instruction set in LOOKUPFFN_INT8", name, ("auto", *LEVELS))
    if name not in served_levels():
        raise UserError(f"LOOKUPFFN_INT8={name}: this CPU or build has {', '.join(served_levels())}; use auto")
    return LEVELS.index(name)


def declines(model: LookupRobertaModel) -> str | None:
    """Why the C++ encoder cannot run ``model`` in int8; None if it can. May compile."""
    config = model.config
    if any(p.device.type != "cpu" for p in model.parameters()):
        return "the model is not on the CPU"
    if config.is_decoder or config.add_cross_attention:
        return "the model is a decoder"
    if config.attention_projection != "dense":
        return f"attention_projection={config.attention_projection} has no int8 form"
    if config.hidden_size // config.num_attention_heads % 16:
        return f"heads of {config.hidden_size // config.num_attention_heads} columns are not a multiple of 16"
    for ffn in model.feed_forwards():
        if isinstance(ffn, GemmFFN):
            if ffn.options.hidden_act not in _ACTIVATIONS:
                return f"the activation {ffn.options.hidden_act} has no int8 form"
            if ffn.options.intermediate_size % 16:
                return f"intermediate_size {ffn.options.intermediate_size} is not a multiple of 16"
        elif isinstance(ffn, LookupFFN):
            o = ffn.options
            if reason := declines_options(o.table_size, o.num_probes, o.normaliser):
                return reason
            if o.num_tables * o.table_size >= _MOST_ROWS:
                return f"{o.num_tables} tables of {o.table_size} rows are too many for its 32-bit offsets"
        elif not isinstance(ffn, NoneFFN):
            return f"ffn={ffn.name} has no int8 form"
    return LIBRARY.unavailable_reason()


def _floats(*tensors: Tensor) -> list[Tensor]:
    return [t.detach().float().contiguous() for t in tensors]


def _norm(norm: nn.LayerNorm) -> tuple[Tensor, Tensor, float]:
    return *_floats(norm.weight, norm.bias), norm.eps


def _linear(*layers: nn.Linear) -> list[Tensor]:
    return [t for layer in layers for t in _floats(layer.weight, layer.bias)]


class NativeEncoder:
    """Holds a model's weights packed for int8; embeddings and int8 tables of the model are shared, not copied.

    Weights are read here, once: what changes them later is not seen.
    """

    precision = "int8"

    def __init__(self, model: LookupRobertaModel, lm_head: nn.Module | None = None, *, exact_attention: bool = False):
        """``exact_attention`` keeps queries, keys and values in float32 in place of bfloat16.

        Raises:
            Declined: the model, this machine or the compiler does not allow it.
        """
        if reason := declines(model):
            raise Declined(reason)
        config = model.config
        self.handle = _ops.encoder_new(
            config.hidden_size, config.num_attention_heads, config.num_hidden_layers, _level(), exact_attention
        )
        weakref.finalize(self, _ops.encoder_free, self.handle)
        em = model.embeddings
        tables = _floats(em.word_embeddings.weight, em.position_embeddings.weight, em.token_type_embeddings.weight)
        _ops.encoder_embeddings(
            self.handle, *tables, -1 if em.padding_idx is None else em.padding_idx, *_norm(em.LayerNorm)
        )
        for index, layer in enumerate(model.encoder.layer):
            self._add_attention(index, layer.attention, config.num_attention_heads)
            self._add_ffn(index, _norm(layer.ffn_layer_norm), layer.ffn)
        _ops.encoder_norm(self.handle, *_norm(model.LayerNorm))
        if lm_head is not None:
            _ops.encoder_head(
                self.handle, *_linear(lm_head.dense), *_norm(lm_head.layer_norm), *_linear(lm_head.decoder)
            )

    def _add_attention(self, index: int, attention: nn.Module, heads: int) -> None:
        own = attention.self
        parts = [_floats(part.weight, part.bias) for part in (own.query, own.key, own.value)]
        d = parts[0][0].shape[0]
        # [3, heads, columns of a head, ...]: by head its query, key and value
        weight, bias = (
            torch.stack(same).unflatten(1, (heads, d // heads)).transpose(0, 1).flatten(0, 2)
            for same in zip(*parts, strict=True)
        )
        _ops.encoder_attention(
            self.handle, index, *_norm(attention.LayerNorm), weight, bias, *_linear(attention.output.dense)
        )

    def _add_ffn(self, index: int, norm: tuple[Tensor, Tensor, float], ffn: nn.Module) -> None:
        if isinstance(ffn, GemmFFN):
            activation = _ACTIVATIONS[ffn.options.hidden_act]
            _ops.encoder_gemm(self.handle, index, *norm, *_linear(ffn.intermediate, ffn.output), activation)
        elif isinstance(ffn, LookupFFN):
            _ops.encoder_lookup(self.handle, index, *norm, *_lookup_arguments(ffn))

    def encode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Last hidden state [B, L, d] of [B, L] arguments; zeros where the mask is 0."""
        if attention_mask is not None and attention_mask.dtype is not torch.bool:
            attention_mask = attention_mask != 0
        return _ops.encoder_run(
            self.handle,
            input_ids.long().contiguous(),
            attention_mask if attention_mask is None else attention_mask.contiguous(),
            None if token_type_ids is None else token_type_ids.long().expand_as(input_ids).contiguous(),
            None if position_ids is None else position_ids.long().expand_as(input_ids).contiguous(),
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., d] to the language-model head's [..., V]."""
        rows = hidden.detach().reshape(-1, hidden.shape[-1]).contiguous()
        return _ops.encoder_logits(self.handle, rows).view(*hidden.shape[:-1], -1)

    def packed_bytes(self) -> int:
        """Memory of the packed matrices."""
        return _ops.encoder_bytes(self.handle)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # nothing in it changes

    def __reduce__(self) -> tuple:
        raise UserError("an optimised model cannot be pickled: save_pretrained, load, and optimise again")


@torch.no_grad()
def _lookup_arguments(ffn: LookupFFN) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, float, int]:
    """The projection and its bias, int8 tables and their scales, output bias, alpha, probes."""
    table, scales = (ffn.table, ffn.table_scales) if ffn.table_scales is not None else quantized(ffn.table)
    rows = (table.contiguous(), *_floats(scales, ffn.bias))
    return *_floats(ffn.projection, ffn.projection_bias), *rows, ffn.options.alpha, ffn.options.num_probes


__all__ = ["LEVELS", "LIBRARY", "Declined", "NativeEncoder", "declines", "served_levels"]
