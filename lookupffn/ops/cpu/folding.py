"""BH4 weights as the kernels read them.

H_D = H_G (x) H_b exactly: the within-block part of each transform, its scale and alpha go into the blocks once,
and only the unscaled transform across blocks is left to run. Blocks below 16 are joined into block-diagonal ones of 16.

Dimensions: r copies, D padded size, b block size, G = D / b; B, the block size after joining, at least 16.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lookupffn.ops.hadamard import hadamard_transform

_SMALLEST_BLOCK = 16  # a vector of AVX-512


def fold(weight: Tensor, alpha: float) -> Tensor:
    """Fold everything that can be into BH4's blocks.

    Args:
        weight: [r, 4, G, b, b].
        alpha: weight of BH4(x) in the mix with x.

    Returns:
        [r, 4, D / B, B, B] float32, contiguous; zero-padded to a block of 16 if D is less. Differentiable.
    """
    r, factors, G, b, _ = weight.shape
    size = G * b
    block = min(max(b, _SMALLEST_BLOCK), size)
    weight = weight.float()
    if block > b:
        joined = block // b
        pieces = weight.view(r, factors, G // joined, joined, b, b)
        diagonal = torch.eye(joined, dtype=weight.dtype, device=weight.device)
        # [..., i, row, j, column] is block i where i = j, else 0
        weight = torch.einsum("rfgiab,ij->rfgiajb", pieces, diagonal).reshape(r, factors, -1, block, block)
    scales = torch.full((factors, 1, 1, 1), (size // block) ** -0.5, dtype=weight.dtype, device=weight.device)
    scales[-1] *= alpha
    folded = hadamard_transform(weight, dim=-1) * scales
    if block < _SMALLEST_BLOCK:
        pad = _SMALLEST_BLOCK - block
        folded = torch.nn.functional.pad(folded, (0, pad, 0, pad))
    return folded.contiguous()


class FoldedProjection:
    """Folded weights, kept from call to call until the weight changes.

    A change is seen by torch's version counter, which counts in-place writes except those of fused optimizers and those
    through ``.data``. So a forward with gradients and a switch between training and evaluation forget the folded
    weights as well; after any other such write call ``clear``.
    """

    def __init__(self) -> None:
        self._key: tuple | None = None
        self._folded: Tensor | None = None

    def __deepcopy__(self, memo: dict) -> FoldedProjection:
        return FoldedProjection()

    def __getstate__(self) -> dict[str, Any]:
        return {"_key": None, "_folded": None}

    def clear(self) -> None:
        """Forget the folded weights."""
        self._key = self._folded = None

    def of(self, weight: Tensor, alpha: float) -> Tensor:
        """``fold(weight, alpha)``, from the cache if the weight is the same as last time. No gradient."""
        if torch.compiler.is_compiling() or weight.is_inference():  # neither has a version to go by
            return fold(weight.detach(), alpha)
        key = (weight.data_ptr(), weight._version, alpha, weight.dtype, weight.shape)
        if key != self._key:
            # an inference tensor could not be used outside of inference mode later
            with torch.inference_mode(False), torch.no_grad():
                self._folded = fold(weight.detach(), alpha)
            self._key = key
        return self._folded
