"""Two block-diagonal layers with a shuffle between them.

Grouped layers and the channel shuffle are ShuffleNet's (Zhang et al., arXiv 1707.01083); block-diagonal, permutation,
block-diagonal as a structured matrix is Monarch's (Dao et al., arXiv 2204.00595). Departures: a nonlinearity stands
between the two (it is a feed-forward, not one matrix), the blocks are rectangular, and the permutations before the
first and after the second layer are left out: they would only rename what attention's dense projections mix anyway.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd, sqrt

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from lookupffn import cost
from lookupffn.config.schema import option
from lookupffn.layers.base import FeedForward, Options, require

_DEFAULT_GROUPS = 8


def _default_groups(hidden_size: int, intermediate_size: int) -> int:
    common = gcd(hidden_size, intermediate_size)
    return max(groups for groups in range(1, _DEFAULT_GROUPS + 1) if common % groups == 0)


@dataclass(frozen=True)
class ShuffleOptions(Options):
    """Options of ShuffleFFN.

    Attributes:
        groups: blocks on each diagonal, a divisor of both sizes; the largest up to 8 if None.
        intermediate_size: neurons, 4 * hidden_size if None.
        hidden_act: a transformers activation's name.
    """

    groups: int | None = option(None, at_least=1)
    intermediate_size: int | None = option(None, at_least=1, shared=True)
    hidden_act: str = option("gelu", choices=ACT2FN, shared=True)

    def resolve(self, hidden_size: int) -> ShuffleOptions:
        """See the base class."""
        size = self.intermediate_size or 4 * hidden_size
        groups = self.groups or _default_groups(hidden_size, size)
        for kind, value in (("hidden size", hidden_size), ("intermediate_size", size)):
            require(value % groups == 0, "shuffle", f"groups {groups} does not divide the {kind} {value}")
        return replace(self, groups=groups, intermediate_size=size)


class ShuffleFFN(FeedForward):
    """y = B2 shuffle(act(B1 x + b1)) + b2 with block-diagonal B1 and B2.

    The shuffle deals the neurons of every first block out evenly over the second blocks (neuron i of block g goes to
    place i * groups + g), so that each output sees every input if a block has at least as many neurons as there are
    blocks.

    Parameters, m the intermediate size and g the groups: ``weight_in`` [g, d/g, m/g], ``bias_in`` [m], ``weight_out``
    [g, m/g, d/g], ``bias_out`` [d].
    """

    name = "shuffle"
    Options = ShuffleOptions
    options: ShuffleOptions
    square = True  # the same number of blocks cuts inputs and outputs

    def __init__(self, in_features: int, out_features: int, options: ShuffleOptions) -> None:
        super().__init__(in_features, out_features, options)
        g, d, m = options.groups, in_features, options.intermediate_size
        self.weight_in = nn.Parameter(torch.empty(g, d // g, m // g))
        self.bias_in = nn.Parameter(torch.empty(m))
        self.activation = ACT2FN[options.hidden_act]
        self.weight_out = nn.Parameter(torch.empty(g, m // g, d // g))
        self.bias_out = nn.Parameter(torch.empty(d))
        self.reset_parameters()

    def reset_parameters(self, initializer_range: float = 0.02) -> None:
        """Weights N(0, groups * initializer_range^2), which gives outputs the variance of GEMM's; zero biases."""
        for weight in (self.weight_in, self.weight_out):
            nn.init.normal_(weight, std=sqrt(self.options.groups) * initializer_range)
        for bias in (self.bias_in, self.bias_out):
            nn.init.zeros_(bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        g = self.options.groups
        x_gMi = x.reshape(-1, g, self.in_features // g).transpose(0, 1)
        hidden_gMh = self.activation(torch.baddbmm(self.bias_in.view(g, 1, -1), x_gMi, self.weight_in))
        # [M, h, g] read as [M, g, h]
        shuffled_Mgh = hidden_gMh.permute(1, 2, 0).reshape(-1, g, hidden_gMh.shape[2])
        y_gMo = torch.baddbmm(self.bias_out.view(g, 1, -1), shuffled_Mgh.transpose(0, 1), self.weight_out)
        return y_gMo.transpose(0, 1).reshape(x.shape)

    def cost(self) -> cost.Cost:
        """See the base class. Two products, each smaller than a dense layer's by the number of groups."""
        g, d, m = self.options.groups, self.in_features, self.options.intermediate_size
        return cost.of({"blocks": 2 * (2 * d * m // g)}, 2 * (d * m // g) + m + d)
