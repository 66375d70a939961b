"""A feed-forward whose weights no longer change: prepared, checked and turned into arguments once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lookupffn.ops.backend import select
from lookupffn.ops.lookup_ffn import cpu
from lookupffn.ops.lookup_ffn.weights import LookupWeights
from lookupffn.ops.transforms import transformed

_OPERATOR = torch.ops.lookupffn.lookup_ffn.default


class PreparedLookup:
    """``lookup_ffn`` of fixed weights, as a function of x.

    It keeps the tensors it was given: as long as it is used they must not be written to.
    """

    def __init__(
        self, weights: LookupWeights, inputs: int, otherwise: Callable[[Tensor, LookupWeights], Tensor]
    ) -> None:
        """Prepares what the kernels can use.

        Args:
            weights: of the layer.
            inputs: d.
            otherwise: computes what the kernels do not take.
        """
        dtype = torch.bfloat16 if weights.table.dtype is torch.bfloat16 else torch.float32
        self.weights = weights
        self._dtype = dtype
        self._otherwise = otherwise
        with torch.no_grad():
            example = torch.zeros(0, inputs, dtype=dtype, device=weights.table.device)
            served = select("lookup_ffn", example, weights) is cpu.lookup_ffn
            self._arguments = self._prepare(example) if served else None

    def _prepare(self, example: Tensor) -> tuple:
        w = self.weights
        if w.projection.dim() == 5:
            w.prepared = torch.ops.lookupffn.fold_projection(w.projection.detach().contiguous(), w.alpha)
        return cpu.arguments(example, w)

    def __call__(self, x_Md: Tensor) -> Tensor:
        """[M, d] to [M, o]."""
        if (
            self._arguments is None
            or x_Md.dtype is not self._dtype
            or x_Md.device.type != "cpu"
            or (x_Md.requires_grad and torch.is_grad_enabled())
            or transformed()
        ):
            return self._otherwise(x_Md, self.weights)
        return _OPERATOR(x_Md.contiguous(), *self._arguments)
