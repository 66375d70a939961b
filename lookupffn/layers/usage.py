"""How evenly a feed-forward's addresses (table rows, leaves, experts) are used, as its statistics report it."""

from __future__ import annotations

from math import log

import torch
from torch import Tensor

# tokens one evaluation counts: enough for thousands of addresses, and a small part of the time
COUNTED_TOKENS = 16_384


class UsageCounter:
    """Counts the addresses of the first 16,384 tokens: T tables of S addresses each."""

    def __init__(self, tables: int, addresses: int) -> None:
        self.shape = (tables, addresses)
        self._counts: Tensor | None = None  # [T, S]
        self._tokens = 0

    @property
    def room(self) -> int:
        """How many tokens it still counts; what is beyond them need not be computed."""
        return COUNTED_TOKENS - self._tokens

    @torch.no_grad()
    def add(self, addresses_MTN: Tensor) -> None:
        """Count [M, T, N] integers in [0, S): N addresses of every token in every table."""
        addresses_MTN = addresses_MTN[: self.room]
        if not addresses_MTN.shape[0]:
            return
        T, S = self.shape
        first_T1 = S * torch.arange(T, device=addresses_MTN.device).unsqueeze(1)
        counts = torch.bincount((addresses_MTN.long() + first_T1).flatten(), minlength=T * S).view(T, S)
        self._counts = counts if self._counts is None else self._counts + counts
        self._tokens += addresses_MTN.shape[0]

    def shares(self) -> Tensor | None:
        """[T, S] float64: each address's share of its table's uses; None where nothing was counted."""
        return None if self._counts is None else self._counts / self._counts.sum(-1, keepdim=True).double()


def entropy_bits(shares_TS: Tensor) -> float:
    """Entropy in bits, mean over tables."""
    return float(torch.special.entr(shares_TS).sum(-1).mean() / log(2))


def used(shares_TS: Tensor) -> float:
    """The share of addresses that were used at least once."""
    return float((shares_TS > 0).double().mean())
