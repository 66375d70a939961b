"""A feed-forward whose weights no longer change: prepared, checked and turned into arguments once."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import NoReturn

import torch
from torch import Tensor

from lookupffn.ops.backend import select
from lookupffn.ops.lookup_ffn import cpu
from lookupffn.ops.lookup_ffn.weights import LookupWeights
from lookupffn.ops.transforms import transformed

_OPERATOR = torch.ops.lookupffn.lookup_ffn.default
_INT8_OPERATOR = torch.ops.lookupffn.lookup_int8.default
Otherwise = Callable[[Tensor, LookupWeights], Tensor]


class PreparedLookup:
    """``lookup_ffn`` of fixed weights, as a function of x.

    It keeps the tensors it was given: as long as it is used they must not be written to.
    """

    def __init__(self, weights: LookupWeights, inputs: int, otherwise: Otherwise) -> None:
        """Prepares what the kernels can use.

        Args:
            weights: of the layer.
            inputs: d.
            otherwise: computes what the kernels do not take.
        """
        self.weights = weights
        self._dtype = torch.bfloat16 if weights.table.dtype is torch.bfloat16 else torch.float32
        self._otherwise = otherwise
        with torch.no_grad():
            example = torch.zeros(0, inputs, dtype=self._dtype, device=weights.table.device)
            served = select("lookup_ffn", example, weights) is cpu.lookup_ffn
            self._arguments = self._prepare(example) if served else None

    def _prepare(self, example: Tensor) -> tuple:
        w, folded = self.weights, None
        if w.projection.dim() == 5:
            folded = torch.ops.lookupffn.fold_projection(w.projection.detach().contiguous(), w.alpha)
        return cpu.arguments(example, w, folded)

    def _takes(self, x_Md: Tensor) -> bool:
        return (
            self._arguments is not None
            and x_Md.dtype is self._dtype
            and x_Md.device.type == "cpu"
            and not (x_Md.requires_grad and torch.is_grad_enabled())
            and not transformed()
        )

    def __call__(self, x_Md: Tensor) -> Tensor:
        """[M, d] to [M, o]."""
        if self._takes(x_Md):
            return _OPERATOR(x_Md.contiguous(), *self._arguments)
        return self._otherwise(x_Md, self.weights)


class PreparedInt8(PreparedLookup):
    """The same in int8: rows and their scores, and the projection where that is faster than BH4 in float32.

    Tables are copied. A hash input near zero may come out on the other side of it (docs/performance.md).
    """

    def _prepare(self, example: Tensor) -> tuple:
        w = self.weights
        held = (w.projection, w.projection_bias, w.table, w.scales, w.bias)
        tensors = [t.detach().contiguous() if t.dtype is torch.int8 else t.detach().float().contiguous() for t in held]
        handle = torch.ops.lookupffn.lookup_int8_new(*tensors, w.alpha, w.num_probes, example.shape[1])
        weakref.finalize(self, torch.ops.lookupffn.lookup_int8_free, handle)
        return (handle,)

    def __call__(self, x_Md: Tensor) -> Tensor:
        """[M, d] to [M, o]."""
        if self._takes(x_Md):
            return _INT8_OPERATOR(x_Md.contiguous(), *self._arguments)
        return self._otherwise(x_Md, self.weights)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a layer packed for int8 cannot be copied or pickled: prepare it again")


def quantized(table: Tensor) -> tuple[Tensor, Tensor]:
    """Tables in int8 with one scale a row: a row is off by at most 1/254 of its largest element.

    Args:
        table: [T, S, o] floating point.

    Returns:
        int8 [T, S, o], and float32 scales [T, S].
    """
    table = table.float()
    scales = table.abs().amax(-1).clamp_min_(torch.finfo(torch.float32).tiny * 127) / 127
    return (table / scales.unsqueeze(-1)).round_().clamp_(-127, 127).to(torch.int8), scales
