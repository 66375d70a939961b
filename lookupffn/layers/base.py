"""The contract every feed-forward keeps, and how one is built from options a user typed.

A feed-forward maps [..., in_features] to [..., out_features], token by token. LayerNorm before it, dropout and the
residual sum after it belong to the layer around it.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from math import log
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from lookupffn.config.schema import names_where, read
from lookupffn.cost import Cost
from lookupffn.errors import UserError


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of one feed-forward, each declared by ``config.schema.option`` with a default.

    A field whose default is None gets its value from the hidden size, in ``resolve``. One declared with ``shared=True``
    takes the value of the model's field of the same name where the user left it open.
    """

    @classmethod
    def from_mapping(cls, name: str, values: Mapping[str, Any]) -> Self:
        """Options from what a user typed.

        Args:
            name: the feed-forward's name, for messages.
            values: option names and values.

        Raises:
            UserError: an unknown option, or a value that it cannot have.
        """
        return read(cls, values, f"ffn {name!r}: ", f"option of ffn {name!r}")

    @classmethod
    def shared(cls) -> list[str]:
        """The options that the model may decide."""
        return names_where(cls, "shared")

    def resolve(self, hidden_size: int) -> Self:
        """Fill in what is None and compare options with the hidden size and each other, before anything is built.

        Raises:
            UserError: a value the feed-forward cannot have at this hidden size.
        """
        return self


def require(condition: bool, name: str, message: str) -> None:
    """Raise a UserError about ffn ``name`` unless ``condition`` holds."""
    if not condition:
        raise UserError(f"ffn {name!r}: {message}")


def require_floating(x: Tensor, name: str) -> None:
    """Raise a TypeError unless ``x`` holds real floating-point numbers: some arithmetic would take anything."""
    if not x.dtype.is_floating_point:
        raise TypeError(f"ffn {name!r} takes floating-point numbers, not {x.dtype}")


# of parameters that the optimizer may treat apart: rows read by address, and what addresses them
ROLES = ("tables", "hash")


class FeedForward(nn.Module, ABC):
    """One feed-forward.

    Attributes:
        name: what a user types for it.
        Options: the dataclass of its options.
        square: whether it needs as many outputs as inputs.
        in_features: size of its inputs.
        out_features: size of its outputs.
        options: its options, every value resolved.
        collecting: whether forwards in evaluation gather statistics.
    """

    name: ClassVar[str]
    Options: ClassVar[type[Options]]
    square: ClassVar[bool] = False
    collecting: bool = False

    def __init__(self, in_features: int, out_features: int, options: Options) -> None:
        """``options`` must be resolved for ``in_features``. Subclasses create their parameters and reset them."""
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.options = options

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""

    @abstractmethod
    def cost(self) -> Cost:
        """Cost of one token at inference; an average as last measured where it depends on the token."""

    @abstractmethod
    def reset_parameters(self, initializer_range: float = 0.02) -> None:
        """Draw every parameter anew from torch's random generator.

        Only by functions of torch.nn.init: while a checkpoint loads, transformers makes these skip what was loaded.

        Args:
            initializer_range: the model's standard deviation for weights that have no rule of their own.
        """

    def auxiliary_losses(self) -> dict[str, Tensor]:
        """Named, weighted scalars of the last forward in training, to be added to the loss. None by default."""
        return {}

    def parameter_roles(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by their role, one of ``ROLES``.

        None by default.
        """
        return {}

    def collect_statistics(self, enabled: bool) -> None:
        """Begin to gather, from nothing, what ``statistics`` reports of forwards in evaluation; or stop to.

        Subclasses that have statistics extend this.
        """
        self.collecting = enabled

    def statistics(self) -> dict[str, float]:
        """Named figures of the tokens seen since ``collect_statistics(True)``; none by default."""
        return {}


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
