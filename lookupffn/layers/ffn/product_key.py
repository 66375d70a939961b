"""Product-key memory: a token's query chooses a few rows of a large table of values (Lample et al., arXiv 1907.05242).

A key is a pair of half-keys, so that the k best of n^2 keys are found among the k best of n in each half. Departures
from the paper:
- queries are normalised by a LayerNorm for each head, not a BatchNorm: tokens do not see each other in training, and
  processes need not agree on statistics. The paper's BatchNorm spreads the queries over more of the keys;
- the memory stands in every layer, not in place of the feed-forward of one or two, and is smaller for it;
- gradients of the values are dense. The paper gives the values a learning rate of their own: they are the parameter
  role "tables", and the query network and the keys "hash".

Dimensions: M tokens, d hidden size, H heads, n half-keys, k rows a head, q half the key size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import sqrt

import torch
from torch import Tensor, nn

from lookupffn import cost
from lookupffn.config.schema import option
from lookupffn.layers.base import FeedForward, Options, UsageCounter, entropy_bits, require, used
from lookupffn.ops import weighted_gather


@dataclass(frozen=True)
class ProductKeyOptions(Options):
    """Options of ProductKeyMemory.

    Attributes:
        heads: H, queries a token; their rows are added.
        num_keys: n, half-keys in each half; there are n^2 values, shared by the heads.
        key_size: of both halves together, even; about hidden_size / 4 if None, the paper's 256 at 1024.
        top_k: k, rows a head, at most num_keys.
    """

    heads: int = option(4, at_least=1)
    num_keys: int = option(128, at_least=1)
    key_size: int | None = option(None, at_least=2)
    top_k: int = option(32, at_least=1)

    def resolve(self, hidden_size: int) -> ProductKeyOptions:
        """See the base class."""
        size = self.key_size or 2 * max(1, hidden_size // 8)
        require(size % 2 == 0, "product_key", f"key_size must be even, not {size}")
        most = self.num_keys
        require(self.top_k <= most, "product_key", f"top_k must be from 1 to num_keys ({most}), not {self.top_k}")
        return replace(self, key_size=size)


@lru_cache(maxsize=64)  # made once on a device: a copy to a GPU waits for it
def _candidates(k: int, device: torch.device) -> Tensor:
    """[2, c]: which pairs of ranks (from 0) may be among the k largest sums of two descending lists.

    The pair (i, j) is no better than the (i + 1) (j + 1) - 1 pairs of ranks up to i and j.
    """
    pairs = [(i, j) for i in range(k) for j in range(k // (i + 1))]
    return torch.tensor(pairs, device=device).T.contiguous()


class ProductKeyMemory(FeedForward):
    """y = sum over heads h and the k largest scores of softmax(scores)[h, i] * value_i.

    The score of key (a, b) is <first half of query, key_a> + <second half, key_b>.

    Parameters: ``query`` (Linear, d to H * key_size), ``query_norm`` (LayerNorm over key_size), ``keys`` [H, 2, n, q],
    ``values`` [n^2, outputs].
    """

    name = "product_key"
    Options = ProductKeyOptions
    options: ProductKeyOptions

    def __init__(self, in_features: int, out_features: int, options: ProductKeyOptions) -> None:
        super().__init__(in_features, out_features, options)
        H, n = options.heads, options.num_keys
        self.query = nn.Linear(in_features, H * options.key_size)
        self.query_norm = nn.LayerNorm(options.key_size)
        self.keys = nn.Parameter(torch.empty(H, 2, n, options.key_size // 2))
        self.values = nn.Parameter(torch.empty(n * n, out_features))
        self._usage: UsageCounter | None = None
        self.reset_parameters()

    def reset_parameters(self, initializer_range: float = 0.02) -> None:
        """Keys uniform up to 1 / sqrt(q) and values N(0, 1/outputs) as the authors; query N(0, initializer_range^2)."""
        nn.init.normal_(self.query.weight, std=initializer_range)
        nn.init.zeros_(self.query.bias)
        nn.init.ones_(self.query_norm.weight)
        nn.init.zeros_(self.query_norm.bias)
        bound = 1 / sqrt(self.options.key_size // 2)
        nn.init.uniform_(self.keys, -bound, bound)
        nn.init.normal_(self.values, std=1 / sqrt(self.out_features))

    def scores(self, x: Tensor) -> Tensor:
        """Scores of all half-keys.

        Args:
            x: [M, d].

        Returns:
            [H, 2, M, n] float32.
        """
        H, _, n, q = self.keys.shape
        queries_MHq = self.query_norm(self.query(x).view(-1, H, 2 * q))
        halves = queries_MHq.view(-1, H * 2, q).transpose(0, 1)
        return torch.bmm(halves, self.keys.view(H * 2, n, q).transpose(1, 2)).float().view(H, 2, -1, n)

    @torch.no_grad()
    def _choose(self, scores_H2Mn: Tensor) -> tuple[Tensor, Tensor]:
        """The half-keys of the k largest sums, twice [H, M, k]."""
        k = self.options.top_k
        best, keys = scores_H2Mn.topk(k)
        # what is made while a graph is traced has no numbers and must not be kept
        i, j = (_candidates.__wrapped__ if torch.compiler.is_compiling() else _candidates)(k, best.device)
        sums_HMc = best[:, 0].index_select(-1, i) + best[:, 1].index_select(-1, j)
        chosen_HMk = sums_HMc.topk(k, sorted=False).indices
        return keys[:, 0].gather(-1, i[chosen_HMk]), keys[:, 1].gather(-1, j[chosen_HMk])

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        scores_H2Mn = self.scores(x.reshape(-1, self.in_features))
        first_HMk, second_HMk = self._choose(scores_H2Mn)
        chosen_HMk = scores_H2Mn[:, 0].gather(-1, first_HMk) + scores_H2Mn[:, 1].gather(-1, second_HMk)
        weights_M1K = chosen_HMk.softmax(-1).transpose(0, 1).flatten(1).unsqueeze(1)
        rows_M1K = (first_HMk * self.options.num_keys + second_HMk).transpose(0, 1).flatten(1).unsqueeze(1)
        if self._usage is not None and self.collecting and not self.training:
            self._usage.add(rows_M1K)
        # the heads' rows are rows of one table
        y_Mo = weighted_gather(self.values.unsqueeze(0), rows_M1K, weights_M1K)
        return y_Mo.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def parameter_roles(self) -> dict[str, list[nn.Parameter]]:
        """See the base class."""
        return {"tables": [self.values], "hash": [*self.query.parameters(), *self.query_norm.parameters(), self.keys]}

    def collect_statistics(self, enabled: bool) -> None:
        """See the base class. The rows of the first 16,384 tokens are counted."""
        super().collect_statistics(enabled)
        if enabled:
            self._usage = UsageCounter(1, self.values.shape[0])

    def statistics(self) -> dict[str, float]:
        """How the values are used, over the tokens that were counted.

        Returns:
            code_entropy_bits: entropy of the rows read, at most 2 log2 num_keys.
            rows_addressed: share of all rows that were read at least once.
        """
        shares = None if self._usage is None else self._usage.shares()
        return {} if shares is None else {"code_entropy_bits": entropy_bits(shares), "rows_addressed": used(shares)}

    def cost(self) -> cost.Cost:
        """See the base class. All half-keys are scored and chosen from; then the sums that may be among the k largest.

        One token reads H * k rows of values.
        """
        o, d, outputs = self.options, self.in_features, self.out_features
        H, sums = o.heads, sum(o.top_k // rank for rank in range(1, o.top_k + 1))
        query = cost.linear(d, H * o.key_size)
        parts = {
            "query": query.flops,
            "keys": H * 2 * o.num_keys * o.key_size,
            "selection": H * (2 * o.num_keys + sums),
            # the sums to choose from
            "sums": H * sums,
        }
        parts |= cost.gather(H, o.top_k, outputs)
        dense = query.parameters + 2 * o.key_size + self.keys.numel()
        return cost.of(parts, dense + self.values.numel(), touched=dense + H * o.top_k * outputs)
