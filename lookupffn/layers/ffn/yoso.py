"""YOSO as a feed-forward: neurons weighted by how likely LSH puts them in the token's bucket.

Zeng et al., "You Only Sample (Almost) Once: Linear Cost Self-Attention Via Bernoulli Sampling", arXiv 2111.09714; the
LookupFFN paper (arXiv 2403.07221) compares it as a feed-forward, with neurons in place of keys and values.

Of unit-norm token q and neuron key k, a SimHash of tau random hyperplanes gives both the same code with probability
(1 - acos(<q, k>) / pi)^tau. This is the neuron's weight, in one of two forms:
- expectation: the probability itself, two dense products.
- sampled: its estimate from m hashes. The values of the neurons in each bucket are added up into a table
  [m, 2^tau, d]; a token reads one row a hash and averages them. Neurons do not depend on the token, so at inference
  tables are built once and a token pays for its hashes and m rows, however many neurons there are.

Hyperplanes are the paper's fast ones: a row of H D3 H D2 H D1 with random sign diagonals D and Hadamard transforms H
(Andoni et al., arXiv 1509.02897). In training they are drawn anew at every forward, as in the paper, from torch's
generator; at evaluation they are fixed (the paper draws there too).

The gradient is the paper's. The derivative of the probability by the cosine is infinite at 1; it is replaced by its
lower bound tau / 2 times the probability. In the sampled form the estimate stands for the probability in the gradient
of tokens and keys, and of values, too.

What is computed: training builds the weights [M, n] in both forms, for the gradient needs them; inference (no gradient)
of the sampled form reads tables. ``cost`` counts inference.

Dimensions: M tokens, d hidden size, D the next power of two, n neurons, m hashes, S = 2^tau rows, r copies of D
hyperplanes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import log2, pi

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from lookupffn import cost, ops
from lookupffn.config.schema import option
from lookupffn.layers.base import FeedForward, Options, require_floating
from lookupffn.ops.bh4 import next_power_of_two
from lookupffn.ops.precision import autocast
from lookupffn.ops.transforms import first_order

FORMS = ("sampled", "expectation")
_ROUNDS = 3  # diagonals and transforms of a fast hyperplane
_LARGEST_BITS = 12
_MOST_HASHES = 255  # collisions of a token and a neuron are counted in a byte


@dataclass(frozen=True)
class YosoOptions(Options):
    """Options of YOSO.

    Attributes:
        intermediate_size: n, neurons; 4 * hidden_size if None.
        form: "sampled" or "expectation".
        bits: tau, 1 to 12.
        num_hashes: m of the sampled form, 1 to 255.
    """

    intermediate_size: int | None = option(None, at_least=1, shared=True)
    form: str = option("sampled", choices=FORMS)
    bits: int = option(8, at_least=1, at_most=_LARGEST_BITS)
    num_hashes: int = option(64, at_least=1, at_most=_MOST_HASHES)

    def resolve(self, hidden_size: int) -> YosoOptions:
        """See the base class."""
        return replace(self, intermediate_size=self.intermediate_size or 4 * hidden_size)


class YosoFFN(FeedForward):
    """y = normalize(sum over neurons of weight(x, key) * value) + bias, an L2 norm.

    Parameters: ``key`` [n, d], ``value`` [n, outputs], ``bias`` [outputs].
    Buffer of the sampled form: ``diagonals`` [r, 3, D], whose signs are those of the hyperplanes at evaluation.
    """

    name = "yoso"
    Options = YosoOptions
    options: YosoOptions

    def __init__(self, in_features: int, out_features: int, options: YosoOptions) -> None:
        super().__init__(in_features, out_features, options)
        n = options.intermediate_size
        self.key = nn.Parameter(torch.empty(n, in_features))
        self.value = nn.Parameter(torch.empty(n, out_features))
        self.bias = nn.Parameter(torch.empty(out_features))
        D = next_power_of_two(in_features)
        copies = -(-options.num_hashes * options.bits // D)
        diagonals = torch.empty(copies, _ROUNDS, D) if options.form == "sampled" else None
        self.register_buffer("diagonals", diagonals)
        self.reset_parameters()

    def reset_parameters(self, initializer_range: float = 0.02) -> None:
        """Keys and values N(0, initializer_range^2) (the authors' 0.02) and bias 0.001 N(0, 1)."""
        nn.init.normal_(self.key, std=initializer_range)
        nn.init.normal_(self.value, std=initializer_range)
        nn.init.normal_(self.bias, std=0.001)
        if self.diagonals is not None:
            nn.init.normal_(self.diagonals)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        require_floating(x, self.name)
        x_Md = x.reshape(-1, self.in_features).to(self.key.dtype)
        q_Md, k_nd = F.normalize(x_Md, dim=-1), F.normalize(self.key, dim=-1)
        if self.options.form == "expectation":
            sum_Md = self._expected_weights(q_Md, k_nd) @ self.value
        elif self.training or torch.is_grad_enabled():
            sum_Md = self._sampled_weights(q_Md, k_nd) @ self.value
        else:
            sum_Md = self._read_tables(q_Md, k_nd)
        # a token whose buckets are all empty gets the bias alone, and has no gradient
        y_Md = F.normalize(sum_Md.to(self.bias.dtype), dim=-1, eps=1e-6) + self.bias
        return y_Md.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def _expected_weights(self, q_Md: Tensor, k_nd: Tensor) -> Tensor:
        # half precision is too coarse for acos near 1
        with autocast(q_Md.device, enabled=False):
            return _Weights.apply(q_Md, k_nd, collision_probability(q_Md, k_nd, self.options.bits), self.options.bits)

    def _sampled_weights(self, q_Md: Tensor, k_nd: Tensor) -> Tensor:
        o = self.options
        with autocast(q_Md.device, enabled=False), torch.no_grad():
            diagonals = torch.randn_like(self.diagonals) if self.training else self.diagonals
            # as small as can be and contiguous for each hash: this loop is what a training step spends its time in
            small = torch.uint8 if o.bits <= 8 else torch.int16
            codes_mM, codes_mn = (self.hash(v, diagonals).to(small).T.contiguous() for v in (q_Md, k_nd))
            apart_Mn = torch.zeros(len(q_Md), len(k_nd), dtype=torch.uint8, device=q_Md.device)
            for codes_M, codes_n in zip(codes_mM, codes_mn, strict=True):
                apart_Mn += (codes_M.unsqueeze(1) ^ codes_n).clamp_(max=1)
            weights_Mn = 1 - apart_Mn.to(q_Md.dtype) / o.num_hashes
        return _Weights.apply(q_Md, k_nd, weights_Mn, o.bits)

    def _read_tables(self, q_Md: Tensor, k_nd: Tensor) -> Tensor:
        o = self.options
        with autocast(q_Md.device, enabled=False):
            codes_Mm, codes_nm = (self.hash(v, self.diagonals) for v in (q_Md, k_nd))
            table_mSd = self.value.new_zeros(o.num_hashes, 1 << o.bits, self.out_features)
            for table_Sd, codes_n in zip(table_mSd, codes_nm.T, strict=True):
                table_Sd.index_add_(0, codes_n, self.value)
            average_Mm1 = q_Md.new_full((*codes_Mm.shape, 1), 1 / o.num_hashes)
            return ops.weighted_gather(table_mSd, codes_Mm.unsqueeze(-1), average_Mm1)

    def hash(self, v_Rd: Tensor, diagonals: Tensor) -> Tensor:
        """Codes of tokens or keys.

        Args:
            v_Rd: [rows, d].
            diagonals: [r, 3, D], whose signs count.

        Returns:
            int32 [rows, m].
        """
        o, signs = self.options, diagonals.sign()
        h_RrD = F.pad(v_Rd, (0, signs.shape[-1] - self.in_features)).unsqueeze(1)
        for round_ in range(_ROUNDS):
            h_RrD = ops.hadamard_transform(h_RrD * signs[:, round_])
        z_Rmt = h_RrD.flatten(1)[:, : o.num_hashes * o.bits].unflatten(1, (o.num_hashes, o.bits))
        return ops.nearest_codes(z_Rmt, 1)[0].squeeze(-1)

    def cost(self) -> cost.Cost:
        """See the base class.

        Sampled: the sign diagonals multiply, the transforms add, m rows of d are added up; 1 / m belongs to the tables,
        which are built once. A token reads as many table entries; they stand for the parameters touched.
        """
        o, d, outputs = self.options, self.in_features, self.out_features
        parameters = sum(p.numel() for p in self.parameters())
        if o.form == "expectation":
            return cost.of({"weights": 2 * d * len(self.key), "values": 2 * outputs * len(self.key)}, parameters)
        D = next_power_of_two(d)
        rounds = len(self.diagonals) * _ROUNDS
        parts = {"hash": rounds * D, "hadamard": rounds * D * log2(D), "gather": o.num_hashes * outputs}
        return cost.of(parts, parameters, touched=min(parameters, o.num_hashes * outputs + outputs))


def collision_probability(q_Md: Tensor, k_nd: Tensor, bits: int) -> Tensor:
    """Probability that all of ``bits`` random hyperplanes leave two vectors on the same side. No gradient.

    Args:
        q_Md: unit rows [M, d].
        k_nd: unit rows [n, d].
        bits: tau.

    Returns:
        [M, n], 0 to 1.
    """
    with torch.no_grad():
        return (1 - (q_Md @ k_nd.T).clamp_(-1, 1).acos_() / pi) ** bits


class _Weights(torch.autograd.Function):
    """The weights [M, n] as given; backward takes d weight / d cosine for tau / 2 * weight."""

    @staticmethod
    def forward(ctx: FunctionCtx, q_Md: Tensor, k_nd: Tensor, weights_Mn: Tensor, bits: int) -> Tensor:
        ctx.save_for_backward(q_Md, k_nd, weights_Mn)
        ctx.bits = bits
        return weights_Mn.view_as(weights_Mn)

    @staticmethod
    @first_order
    def backward(ctx: FunctionCtx, grad_Mn: Tensor) -> tuple[Tensor, Tensor, None, None]:
        q_Md, k_nd, weights_Mn = ctx.saved_tensors
        grad_cosine_Mn = grad_Mn * weights_Mn * (ctx.bits / 2)
        return grad_cosine_Mn @ k_nd, grad_cosine_Mn.T @ q_Md, None, None
