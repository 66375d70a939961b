"""Switch: a router sends each token to one of several GEMM experts (Fedus et al., arXiv 2101.03961).

As in the paper: top-1 routing, the expert's output times its router probability, router in float32, an auxiliary loss
for even load, noise on the router's input in training, and an expert capacity: tokens beyond it get zeros, so that the
residual passes them on. Departures: capacity holds in training only, since with it what a token gets at evaluation
would depend on the other tokens of its batch; it is shared out in the order of each process's micro-batch; experts are
computed one after the other on one device (no all-to-all); weights start as the model's others do.

Dimensions: M tokens, d hidden size, E experts, m neurons an expert.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad
from transformers.activations import ACT2FN

from lookupffn import cost
from lookupffn.config.schema import option
from lookupffn.layers.base import FeedForward, Options, UsageCounter, entropy_bits
from lookupffn.ops.precision import autocast


@dataclass(frozen=True)
class SwitchOptions(Options):
    """Options of SwitchFFN.

    Attributes:
        num_experts: E.
        intermediate_size: m, neurons an expert, 4 * hidden_size if None: then a token costs what GEMM costs it.
        hidden_act: a transformers activation's name.
        capacity_factor: in training an expert takes this many times its even share of the tokens; None for no limit.
        router_jitter: in training the router's input is multiplied by uniform noise from 1 - jitter to 1 + jitter.
        load_balancing_weight: weight of the auxiliary loss.
    """

    num_experts: int = option(8, at_least=1)
    intermediate_size: int | None = option(None, at_least=1, shared=True)
    hidden_act: str = option("gelu", choices=ACT2FN, shared=True)
    capacity_factor: float | None = option(1.25, above=0, null="no limit")
    router_jitter: float = option(0.01, at_least=0, below=1)
    load_balancing_weight: float = option(0.01, at_least=0)

    def resolve(self, hidden_size: int) -> SwitchOptions:
        """See the base class."""
        return replace(self, intermediate_size=self.intermediate_size or 4 * hidden_size)


class SwitchFFN(FeedForward):
    """y = p_e (W2_e act(W1_e x + b1_e) + b2_e) for the expert e of largest router probability p = softmax(R x).

    Parameters: ``router`` [E, d], ``weight_in`` [E, m, d], ``bias_in`` [E * m], ``weight_out`` [E, outputs, m],
    ``bias_out`` [E * outputs].
    """

    name = "switch"
    Options = SwitchOptions
    options: SwitchOptions

    def __init__(self, in_features: int, out_features: int, options: SwitchOptions) -> None:
        super().__init__(in_features, out_features, options)
        E, d, m = options.num_experts, in_features, options.intermediate_size
        self.router = nn.Parameter(torch.empty(E, d))
        self.weight_in = nn.Parameter(torch.empty(E, m, d))
        self.bias_in = nn.Parameter(torch.empty(E * m))
        self.activation = ACT2FN[options.hidden_act]
        self.weight_out = nn.Parameter(torch.empty(E, out_features, m))
        self.bias_out = nn.Parameter(torch.empty(E * out_features))
        self._load_balancing: Tensor | None = None  # of the last forward in training
        self._usage: UsageCounter | None = None
        self.reset_parameters()

    def reset_parameters(self, initializer_range: float = 0.02) -> None:
        """N(0, initializer_range^2) weights and zero biases, as GEMM."""
        for weight in (self.router, self.weight_in, self.weight_out):
            nn.init.normal_(weight, std=initializer_range)
        for bias in (self.bias_in, self.bias_out):
            nn.init.zeros_(bias)

    def train(self, mode: bool = True) -> Self:
        """As nn.Module's; the auxiliary loss of a forward before it is forgotten."""
        self._load_balancing = None
        return super().train(mode)

    def route(self, x: Tensor) -> Tensor:
        """Router probabilities.

        Args:
            x: [M, d].

        Returns:
            [M, E] float32.
        """
        with autocast(x.device, enabled=False):
            x = x.float()
            jitter = self.options.router_jitter
            if self.training and jitter:
                x = x * torch.empty_like(x).uniform_(1 - jitter, 1 + jitter)
            return linear(x, self.router.float()).softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        if x.is_meta:  # routes depend on numbers that are not there
            return x.new_empty(*x.shape[:-1], self.out_features)
        x_Md = x.reshape(-1, self.in_features)
        probabilities_ME = self.route(x_Md)
        gate_M1, expert_M1 = probabilities_ME.max(-1, keepdim=True)
        counts_E = torch.bincount(expert_M1.flatten(), minlength=self.options.num_experts)
        if self.training:
            self._load_balancing = self._balance(probabilities_ME, counts_E)
        elif self.collecting and self._usage is not None:
            self._usage.add(expert_M1.unsqueeze(-1))
        # tokens of an expert side by side, in the order of the batch
        order_M = expert_M1.flatten().argsort(stable=True)
        place_M = torch.empty_like(order_M).scatter_(0, order_M, torch.arange(x_Md.shape[0], device=x.device))
        y_Md = self._experts(x_Md.index_select(0, order_M), counts_E).index_select(0, place_M)
        return (gate_M1 * y_Md).to(x.dtype).view(*x.shape[:-1], self.out_features)

    @torch.compiler.disable  # sizes depend on the tokens: it would be compiled anew at every step
    def _experts(self, x_Md: Tensor, counts_E: Tensor) -> Tensor:
        """Each expert on its run of tokens, zeros where it is full."""
        M, E, factor = x_Md.shape[0], self.options.num_experts, self.options.capacity_factor
        capacity = ceil(factor * M / E) if self.training and factor is not None else M
        weights = (self.weight_in, self.bias_in.view(E, -1), self.weight_out, self.bias_out.view(E, -1))
        outputs = []
        for chunk, w_in, b_in, w_out, b_out in zip(
            x_Md.split(counts_E.tolist()), *(weight.unbind() for weight in weights), strict=True
        ):
            y = linear(self.activation(linear(chunk[:capacity], w_in, b_in)), w_out, b_out)
            outputs.append(pad(y, (0, 0, 0, chunk.shape[0] - y.shape[0])))
        return torch.cat(outputs)

    def _balance(self, probabilities_ME: Tensor, counts_E: Tensor) -> Tensor:
        """E times the inner product of the experts' shares of tokens and mean probabilities: 1 if either is even."""
        M, E = probabilities_ME.shape
        return E * (counts_E / max(1, M) * probabilities_ME.sum(0) / max(1, M)).sum()

    def auxiliary_losses(self) -> dict[str, Tensor]:
        """See the base class. Gradient flows through the mean probabilities only; the counts have none."""
        if self._load_balancing is None or not self.options.load_balancing_weight:
            return {}
        return {"load_balancing_loss": self.options.load_balancing_weight * self._load_balancing}

    def parameter_roles(self) -> dict[str, list[nn.Parameter]]:
        """See the base class."""
        return {"hash": [self.router]}

    def collect_statistics(self, enabled: bool) -> None:
        """See the base class. The experts of the first 16,384 tokens are counted."""
        super().collect_statistics(enabled)
        if enabled:
            self._usage = UsageCounter(1, self.options.num_experts)

    def statistics(self) -> dict[str, float]:
        """How the experts are used, over the tokens that were counted.

        Returns:
            expert_load_entropy_bits: entropy of the experts chosen, at most log2 num_experts.
            tokens_over_capacity: share of tokens beyond the experts' capacity, were all of them one batch of training.
        """
        shares = None if self._usage is None else self._usage.shares()
        if shares is None:
            return {}
        o = self.options
        limit = float("inf") if o.capacity_factor is None else o.capacity_factor / o.num_experts
        return {
            "expert_load_entropy_bits": entropy_bits(shares),
            "tokens_over_capacity": float((shares - limit).clamp(min=0).sum()),
        }

    def cost(self) -> cost.Cost:
        """See the base class. The router, its choice, one expert, and a multiply a feature by its probability."""
        o, d, outputs = self.options, self.in_features, self.out_features
        router, expert = cost.linear(d, o.num_experts, bias=False), cost.gemm_ffn(d, o.intermediate_size, outputs)
        parts = {"router": router.flops, "selection": o.num_experts, "expert": expert.flops, "gate": outputs}
        existing = router.parameters + o.num_experts * expert.parameters
        return cost.of(parts, existing, touched=router.parameters + expert.parameters)
