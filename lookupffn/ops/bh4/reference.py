"""BH4: a learned structured projection, four block-diagonal factors with a Hadamard transform after each.

Source: Zeng et al., "LookupFFN", arXiv 2403.07221, section 4. The authors' CPU kernel scales the transform by 1/d where
training used 1/sqrt(d); here it is orthonormal everywhere.

Dimensions: M tokens, d input size, D the next power of two, b block size, G = D / b blocks, r copies.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from lookupffn.ops.hadamard import hadamard_transform
from lookupffn.ops.precision import autocast, autocast_enabled
from lookupffn.ops.transforms import first_order, transformed

FACTORS = 4


def next_power_of_two(n: int) -> int:
    """The least power of two that is at least ``n`` (n >= 1)."""
    return 1 << (n - 1).bit_length()


def fold_within_block(weight: Tensor) -> Tensor:
    """Multiply the within-block part of each Hadamard transform into the blocks before it.

    H_D = H_G (x) H_b exactly, so only the across-block H_G remains to run per token.

    Args:
        weight: [r, 4, G, b, b].

    Returns:
        [r, 4, G, b, b].
    """
    return hadamard_transform(weight, dim=-1)


def _factor_inputs(x_Md: Tensor, folded: Tensor) -> Iterator[Tensor]:
    """What each factor is applied to, then the result: five tensors [r * G, M, b].

    Block-major all the way: neither the block products nor the transform across blocks moves memory.
    """
    r, _, G, b, _ = folded.shape
    M, d = x_Md.shape
    x_MD = torch.nn.functional.pad(x_Md, (0, G * b - d))
    h = x_MD.view(M, G, b).transpose(0, 1).repeat(r, 1, 1)
    for factor in range(FACTORS):
        yield h
        h = torch.bmm(h, folded[:, factor].reshape(r * G, b, b))
        h = hadamard_transform(h.view(r, G, M, b), dim=1).view(r * G, M, b)
    yield h


def _product(x_Md: Tensor, folded: Tensor) -> Tensor:
    *_, h = _factor_inputs(x_Md, folded)
    return h.transpose(0, 1).reshape(x_Md.shape[0], h.shape[0] * h.shape[2])


class _BH4(torch.autograd.Function):
    """Keeps the input alone and computes the factors again in backward: four tensors of the size of z less a layer."""

    @staticmethod
    def forward(ctx: FunctionCtx, x_Md: Tensor, folded: Tensor) -> Tensor:
        # under autocast the products give half precision; the backward must see the same types
        ctx.autocast = autocast_enabled(x_Md.device)
        ctx.save_for_backward(x_Md, folded)
        return _product(x_Md, folded)

    @staticmethod
    @first_order
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor]:
        x_Md, folded = ctx.saved_tensors
        (M, d), (r, _, G, b, _) = x_Md.shape, folded.shape
        with autocast(x_Md.device, enabled=ctx.autocast):
            inputs = list(_factor_inputs(x_Md, folded))[:FACTORS]
            grad_folded = torch.empty_like(folded)
            g = grad.view(M, r * G, b).transpose(0, 1)
            for factor in reversed(range(FACTORS)):
                g = hadamard_transform(g.reshape(r, G, M, b), dim=1).view(r * G, M, b)
                grad_folded[:, factor] = torch.bmm(inputs[factor].transpose(1, 2), g).view(r, G, b, b)
                g = torch.bmm(g, folded[:, factor].reshape(r * G, b, b).transpose(1, 2))
            grad_x = g.view(r, G, M, b).sum(0).transpose(0, 1).reshape(M, G * b)[:, :d]
        return grad_x.to(x_Md.dtype), grad_folded


def bh4(x_Md: Tensor, weight: Tensor) -> Tensor:
    """Apply ``r`` BH4 products to each token.

    Each copy computes x <- H (B x) four times, B block-diagonal: block g maps the row vector x[g*b:(g+1)*b] to
    x[g*b:(g+1)*b] @ weight[copy, factor, g].

    Args:
        x_Md: [M, d], d <= D; padded with zeros to D.
        weight: [r, 4, G, b, b].

    Returns:
        [M, r * D], copies side by side.

    Raises:
        ValueError: the shapes do not fit together.
    """
    if weight.dim() != 5 or weight.shape[1] != FACTORS or weight.shape[3] != weight.shape[4]:
        raise ValueError(f"BH4 weight must be [r, {FACTORS}, G, b, b], not {list(weight.shape)}")
    G, b = weight.shape[2:4]
    if x_Md.dim() != 2 or x_Md.shape[1] > G * b:
        raise ValueError(f"BH4 of size {G * b} takes [tokens, at most {G * b}], not {list(x_Md.shape)}")
    return (_product if transformed() else _BH4.apply)(x_Md, fold_within_block(weight))


def bh4_mix(x_Md: Tensor, weight: Tensor, bias: Tensor, alpha: float) -> Tensor:
    """See lookupffn.ops.bh4.bh4_mix."""
    copies = weight.shape[0]
    mixed = alpha * bh4(x_Md, weight)
    if alpha != 1:
        padded = torch.nn.functional.pad(x_Md, (0, mixed.shape[1] // copies - x_Md.shape[1]))
        mixed = mixed + ((1 - alpha) * padded).repeat(1, copies)
    return mixed[:, : bias.shape[0]] + bias
