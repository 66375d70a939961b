"""GEMM cut to a small intermediate size: the plainest feed-forward at a given cost, which any other has to beat.

d -> r -> nonlinearity -> d, so a GEMM feed-forward of r neurons (Vaswani et al., arXiv 1706.03762). Not a factorised
GEMM (W = U V in place of each matrix): at equal FLOPs that has a quarter of the rank or less, and without the
nonlinearity it would be a linear map.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from transformers.activations import ACT2FN

from lookupffn.config.schema import option
from lookupffn.layers.base import Options
from lookupffn.layers.ffn.gemm import GemmFFN
from lookupffn.layers.ffn.lookup import LookupFFN, LookupOptions


def _rank_of_lookups_cost(hidden_size: int) -> int:
    with torch.device("meta"):  # nothing is allocated or drawn
        lookup = LookupFFN(hidden_size, hidden_size, LookupOptions().resolve(hidden_size))
    return max(1, int(lookup.cost().flops // (4 * hidden_size)))


@dataclass(frozen=True)
class LowRankOptions(Options):
    """Options of LowRankFFN.

    Attributes:
        rank: r, neurons; if None the most that cost no more FLOPs than the default lookup at this hidden size.
        hidden_act: a transformers activation's name.
    """

    rank: int | None = option(None, at_least=1)
    hidden_act: str = option("gelu", choices=ACT2FN, shared=True)

    def resolve(self, hidden_size: int) -> LowRankOptions:
        """See the base class."""
        return replace(self, rank=self.rank or _rank_of_lookups_cost(hidden_size))

    @property
    def intermediate_size(self) -> int | None:
        """The rank, by GEMM's name for it."""
        return self.rank


class LowRankFFN(GemmFFN):
    """y = W2 act(W1 x + b1) + b2 with W1 [r, in_features] and W2 [out_features, r]; the rest is GEMM's."""

    name = "low_rank"
    Options = LowRankOptions
    options: LowRankOptions
