"""BH4 by the C++ kernels (csrc/bh4.cpp), whose weights have all that can be folded into them.

H_D = H_G (x) H_b exactly: the within-block part of each transform, its scale and alpha go into the blocks once,
and only the unscaled transform across blocks is left to run. Blocks below 16 are joined into block-diagonal ones of 16.

Dimensions: r copies, D padded size, b block size, G = D / b; B, the block size after joining, at least 16.
"""

import torch
from torch import Tensor

from lookupffn.ops.bh4 import operator  # noqa: F401 the schemas
from lookupffn.ops.hadamard import hadamard_transform
from lookupffn.ops.library import kernels_available
from lookupffn.ops.limits import SMALLEST_BLOCK
from lookupffn.ops.transforms import transformed


def declines(x_Md: Tensor, weight: Tensor, bias: Tensor, alpha: float) -> str | None:
    """Why the kernels do not take a BH4 projection: they are float32 and on the CPU."""
    tensors = (x_Md, weight, bias)
    if any(t.device.type != "cpu" for t in tensors):
        return ""
    for name, t in zip(("x", "weight", "bias"), tensors, strict=True):
        if t.dtype is not torch.float32:
            return f"{name} is {t.dtype}, not float32"
    if transformed():
        return ""
    return None if kernels_available() else ""


def bh4_mix(x_Md: Tensor, weight: Tensor, bias: Tensor, alpha: float) -> Tensor:
    """See lookupffn.ops.bh4.bh4_mix; for what is not declined."""
    size = weight.shape[2] * weight.shape[3]
    return torch.ops.lookupffn.bh4_forward(x_Md.contiguous(), fold(weight, alpha), bias.contiguous(), 1.0 - alpha, size)


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
    block = min(max(b, SMALLEST_BLOCK), size)
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
    if block < SMALLEST_BLOCK:
        pad = SMALLEST_BLOCK - block
        folded = torch.nn.functional.pad(folded, (0, pad, 0, pad))
    return folded.contiguous()
