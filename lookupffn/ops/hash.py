"""Hash codes and scores: which table rows a token reads, and with what weight.

Source: Zeng et al., "LookupFFN", arXiv 2403.07221, section 3. The softmax over all sign vectors s in {-1, 1}^tau of
<z, s> factorises: its normaliser is Z = prod_j (e^z_j + e^-z_j). The term of s has weight p(s) = e^<z,s> / Z and score
<z, s> p(s). Of the S = 2^tau terms the N largest are kept.

With a = |z| and F the set of bits where s differs from sign(z), f = sum of a over F:
    <z, s> = sum(a) - 2 f          p(s) = exp(-2 f) / prod_j (1 + exp(-2 a_j))
so the N largest terms are those of the N smallest subset sums f, the first being f = 0, the sign pattern itself.

Dimensions: M tokens, T tables, t = tau bits, N probes.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from lookupffn.ops.limits import MAX_BITS
from lookupffn.ops.precision import autocast
from lookupffn.ops.transforms import first_order, transformed


def nearest_codes(z_MTt: Tensor, num_probes: int) -> tuple[Tensor, Tensor]:
    """The codes of the N largest softmax terms, largest first. No gradient.

    Bit j of a code is set where z_j > 0.

    Args:
        z_MTt: [M, T, tau] hash inputs, tau <= 24.
        num_probes: N, from 1 to 2^tau.

    Returns:
        codes [M, T, N] int32, and the flipped mass f [M, T, N] (see the head of the module), ascending in N.

    Raises:
        ValueError: num_probes is out of range, or tau too large.
    """
    tau = z_MTt.shape[-1]
    if not 1 <= tau <= MAX_BITS:
        raise ValueError(f"codes of 1 to {MAX_BITS} bits are supported, not {tau}")
    if not 1 <= num_probes <= 1 << tau:
        raise ValueError(f"num_probes must be from 1 to the table size {1 << tau}, not {num_probes}")
    z_MTt = z_MTt.detach()
    # a product with powers of two is exact up to 2^24 in float32, and several times faster than an integer sum
    exact = torch.float64 if z_MTt.dtype == torch.float64 else torch.float32
    powers = (2.0 ** torch.arange(tau, device=z_MTt.device)).to(exact)
    with autocast(z_MTt.device, enabled=False):
        signs = ((z_MTt > 0).to(exact) @ powers).to(torch.int32).unsqueeze(-1)
    if num_probes == 1:
        return signs, torch.zeros_like(z_MTt[..., :1])
    magnitude = z_MTt.abs()
    if num_probes <= 3:  # none, the smallest, the second: both at once cannot be less than either
        mass, bits = magnitude.min(-1, keepdim=True)
        if num_probes == 3:  # two minima: topk is slow on a GPU for rows as short as these
            second, bit = magnitude.scatter(-1, bits, torch.inf).min(-1, keepdim=True)
            mass, bits = torch.cat([mass, second], -1), torch.cat([bits, bit], -1)
        flipped = signs ^ torch.bitwise_left_shift(torch.ones_like(signs), bits.to(torch.int32))
        return torch.cat([signs, flipped], -1), torch.cat([torch.zeros_like(mass[..., :1]), mass], -1)
    return _n_smallest_flips(magnitude, signs, num_probes)


def _n_smallest_flips(magnitude: Tensor, signs: Tensor, num_probes: int) -> tuple[Tensor, Tensor]:
    """The N smallest subset sums, one bit at a time: the N best with bit j are among the N best without it, doubled."""
    mass = torch.zeros_like(magnitude[..., :1])
    codes = signs
    for j in range(magnitude.shape[-1]):
        mass = torch.cat([mass, mass + magnitude[..., j : j + 1]], -1)
        codes = torch.cat([codes, codes ^ (1 << j)], -1)
        if mass.shape[-1] > num_probes:
            mass, kept = mass.topk(num_probes, dim=-1, largest=False)
            codes = codes.gather(-1, kept)
    mass, order = mass.sort(dim=-1, stable=True)
    return codes.gather(-1, order), mass


class _HashScores(torch.autograd.Function):
    """Hand-written because autograd would keep half a dozen tensors of the size of z where one will do."""

    @staticmethod
    def forward(ctx: FunctionCtx, z_MTt: Tensor, num_probes: int) -> tuple[Tensor, Tensor]:
        codes, flipped = nearest_codes(z_MTt, num_probes)
        magnitude = z_MTt.abs()
        inner = magnitude.sum(-1, keepdim=True) - 2 * flipped
        weight = torch.exp(-2 * flipped - torch.log1p(torch.exp(-2 * magnitude)).sum(-1, keepdim=True))
        score = inner * weight
        ctx.save_for_backward(z_MTt, codes, weight, score)
        ctx.mark_non_differentiable(codes)
        return codes, score

    @staticmethod
    @first_order
    def backward(ctx: FunctionCtx, _: Tensor | None, grad_score: Tensor) -> tuple[Tensor, None]:
        # d score / d z_j = (p + score) s_j - score tanh(z_j), since d log Z / d z_j = tanh(z_j)
        z, codes, weight, score = ctx.saved_tensors
        along_sign = grad_score * (weight + score)
        total = along_sign.sum(-1, keepdim=True)
        bits = torch.arange(z.shape[-1], dtype=torch.int32, device=z.device)
        for n in range(1, codes.shape[-1]):
            differs = codes[..., n : n + 1] ^ codes[..., :1]
            is_flipped = torch.bitwise_right_shift(differs, bits) & 1
            total = total - 2 * along_sign[..., n : n + 1] * is_flipped
        along_tanh = (grad_score * score).sum(-1, keepdim=True)
        grad_z = torch.where(z > 0, total, -total) - along_tanh * torch.tanh(z)
        return grad_z, None


NORMALISERS = ("all", "kept")


def hash_scores(z_MTt: Tensor, num_probes: int, normaliser: str = "all") -> tuple[Tensor, Tensor]:
    """Codes and scores of the N largest softmax terms of every table.

    Args:
        z_MTt: [M, T, tau] hash inputs, floating point.
        num_probes: N, from 1 to 2^tau.
        normaliser: what the softmax runs over: "all" sign vectors (the paper) or the N "kept" ones.

    Returns:
        codes [M, T, N] int32 (no gradient) and scores [M, T, N] in the type of z (differentiable in z).
        The first score is non-negative; a later one is negative once more than half of sum |z| is flipped.

    Raises:
        ValueError: num_probes is out of range, or the normaliser unknown.
    """
    if normaliser not in NORMALISERS:
        raise ValueError(f"normaliser must be one of {', '.join(NORMALISERS)}, not {normaliser!r}")
    if normaliser == "all" and not transformed():
        return _HashScores.apply(z_MTt, num_probes)
    codes, _ = nearest_codes(z_MTt, num_probes)
    bits = torch.arange(z_MTt.shape[-1], dtype=torch.int32, device=z_MTt.device)
    signs_MTNt = 2 * (torch.bitwise_right_shift(codes.unsqueeze(-1), bits) & 1).to(z_MTt.dtype) - 1
    inner_MTN = (signs_MTNt * z_MTt.unsqueeze(-2)).sum(-1)
    if normaliser == "kept":
        return codes, inner_MTN * inner_MTN.softmax(-1)
    log_normaliser = torch.logaddexp(z_MTt, -z_MTt).sum(-1, keepdim=True)
    return codes, inner_MTN * torch.exp(inner_MTN - log_normaliser)
