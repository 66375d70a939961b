"""The feed-forward of the original Transformer: Linear, nonlinearity, Linear (Vaswani et al., arXiv 1706.03762)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn
from transformers.activations import ACT2FN

from lookupffn import cost
from lookupffn.config.schema import option
from lookupffn.layers.base import FeedForward, Options


@dataclass(frozen=True)
class GemmOptions(Options):
    """intermediate_size: neurons, 4 * hidden_size if None. hidden_act: a transformers activation's name."""

    intermediate_size: int | None = option(None, at_least=1, shared=True)
    hidden_act: str = option("gelu", choices=ACT2FN, shared=True)

    def resolve(self, hidden_size: int) -> GemmOptions:
        """See the base class."""
        return replace(self, intermediate_size=self.intermediate_size or 4 * hidden_size)


class GemmFFN(FeedForward):
    """y = W2 act(W1 x + b1) + b2."""

    name = "gemm"
    Options = GemmOptions
    options: GemmOptions

    def __init__(self, in_features: int, out_features: int, options: GemmOptions) -> None:
        super().__init__(in_features, out_features, options)
        self.intermediate = nn.Linear(in_features, options.intermediate_size)
        self.activation = ACT2FN[options.hidden_act]
        self.output = nn.Linear(options.intermediate_size, out_features)
        self.reset_parameters()

    def reset_parameters(self, initializer_range: float = 0.02) -> None:
        """N(0, initializer_range^2) weights and zero biases, as BERT."""
        for layer in (self.intermediate, self.output):
            nn.init.normal_(layer.weight, std=initializer_range)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        return self.output(self.activation(self.intermediate(x)))

    def cost(self) -> cost.Cost:
        """See the base class."""
        return cost.gemm_ffn(self.in_features, self.options.intermediate_size, self.out_features)
