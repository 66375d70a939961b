"""No feed-forward: the layer is attention alone. The floor of a comparison."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lookupffn import cost
from lookupffn.layers.base import FeedForward, Options, require_floating


@dataclass(frozen=True)
class NoneOptions(Options):
    """There are none."""


class NoneFFN(FeedForward):
    """y = 0, so that the residual sum around it leaves its input as it was."""

    name = "none"
    Options = NoneOptions
    options: NoneOptions
    square = True

    def reset_parameters(self, initializer_range: float = 0.02) -> None:
        """There are none."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        require_floating(x, self.name)
        # a product, not zeros_like: the LayerNorm before it must get a gradient, or DDP waits for it
        return 0 * x

    def cost(self) -> cost.Cost:
        """Nothing."""
        return cost.Cost()
