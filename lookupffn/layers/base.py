"""The contract every feed-forward keeps, and how one is built from options a user typed.

A feed-forward maps [..., in_features] to [..., out_features], token by token. LayerNorm before it, dropout and the
residual sum after it belong to the layer around it.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

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
