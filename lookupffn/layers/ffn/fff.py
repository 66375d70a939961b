"""Fast feedforward: balanced binary trees of neurons, of which a token computes one path from the root to a leaf.

Source: Belcak and Wattenhofer, "Fast Feedforward Networks" (arXiv 2308.14711), in the form of their "Exponentially
Faster Language Modelling" (UltraFastBERT, arXiv 2311.10770): every node is one neuron with a GELU and output weights,
leaves no different from the rest; no output bias; the outputs of several trees are added; the branch is the sign of
the node's logit, in training as at inference, and gradient flows along the path that was taken only. Input biases and
initialisation are those of the authors' training code, which computes all neurons and masks; here only the path is
computed, which is the same function.

Dimensions: M tokens, d hidden size, K trees, n = 2^(depth + 1) - 1 neurons a tree, D = depth + 1 neurons a path.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import log2, sqrt

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.functional import embedding_bag, gelu

from lookupffn import cost
from lookupffn.config.schema import option
from lookupffn.layers.base import FeedForward, Options, UsageCounter, entropy_bits, require_floating, used
from lookupffn.ops.gather import row_products, sort_reads, sum_by_row
from lookupffn.ops.transforms import first_order

_LARGEST_DEPTH = 20
_LONGEST_SUM = 512


@dataclass(frozen=True)
class FFFOptions(Options):
    """Options of FastFeedForward.

    Attributes:
        depth: branchings from root to leaf; if None about as many neurons a tree as GEMM's 4 * hidden_size.
        trees: K, trees whose outputs are added.
    """

    depth: int | None = option(None, at_least=0, at_most=_LARGEST_DEPTH)
    trees: int = option(1, at_least=1)

    def resolve(self, hidden_size: int) -> FFFOptions:
        """See the base class."""
        # UltraFastBERT: 11 at hidden size 768, 4095 neurons for 3072
        depth = max(0, round(log2(4 * hidden_size)) - 1)
        return replace(self, depth=depth if self.depth is None else self.depth)

    @property
    def neurons(self) -> int:
        """n, neurons a tree."""
        return 2 ** (self.depth + 1) - 1


class _Paths(torch.autograd.Function):
    """Descend, then add the path's neurons. Nothing of the size of M x K x d or M x K x n exists.

    The trees' neurons lie one after the other in R = K * n rows, within a tree level by level: the children of node i
    are 2i + 1 (negative logit) and 2i + 2.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, x_Md: Tensor, in_Rd: Tensor, bias_R: Tensor, out_Rd: Tensor, trees: int, depth: int
    ) -> tuple[Tensor, Tensor]:
        root_K = torch.arange(trees, dtype=torch.int32, device=x_Md.device) * (in_Rd.shape[0] // trees)
        rows_MK = root_K.expand(x_Md.shape[0], trees)
        rows, logits = [], []
        for _ in range(depth + 1):
            logit_MK = row_products(x_Md, rows_MK.contiguous(), in_Rd) + bias_R[rows_MK]
            rows.append(rows_MK)
            logits.append(logit_MK)
            rows_MK = root_K + 2 * (rows_MK - root_K) + 1 + (logit_MK > 0).int()
        rows_MKD, logits_MKD = torch.stack(rows, -1), torch.stack(logits, -1)
        ctx.save_for_backward(x_Md, in_Rd, out_Rd, rows_MKD, logits_MKD)
        ctx.mark_non_differentiable(rows_MKD)
        y_Md = embedding_bag(rows_MKD.flatten(1), out_Rd, per_sample_weights=gelu(logits_MKD).flatten(1), mode="sum")
        return y_Md, rows_MKD

    @staticmethod
    @first_order
    def backward(ctx: FunctionCtx, grad_Md: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        x_Md, in_Rd, out_Rd, rows_MKD, logits_MKD = ctx.saved_tensors
        grad_Md = grad_Md.contiguous()
        rows, logits = rows_MKD.flatten(1), logits_MKD.flatten(1)
        grad_logits = torch.ops.aten.gelu_backward(row_products(grad_Md, rows, out_Rd), logits)
        grad_x = embedding_bag(rows, in_Rd, per_sample_weights=grad_logits, mode="sum")
        reads = sort_reads(rows, in_Rd.shape[0])
        # every token reads the root: parts of a few hundred reads keep a GPU's threads busy
        grad_out = sum_by_row(*reads, gelu(logits), grad_Md, longest=_LONGEST_SUM)
        x_and_one = torch.cat([x_Md, torch.ones_like(x_Md[:, :1])], 1)
        grad_in, grad_bias = sum_by_row(*reads, grad_logits, x_and_one, longest=_LONGEST_SUM).split(
            [x_Md.shape[1], 1], 1
        )
        return grad_x, grad_in, grad_bias.squeeze(1), grad_out, None, None


class FastFeedForward(FeedForward):
    """y = sum over trees and the neurons i on the token's path of gelu(in_i x + bias_i) * out_i.

    Parameters: ``weight_in`` [K, n, d], ``weight_out`` [K, n, outputs], ``bias_in`` [K * n].
    """

    name = "fff"
    Options = FFFOptions
    options: FFFOptions

    def __init__(self, in_features: int, out_features: int, options: FFFOptions) -> None:
        super().__init__(in_features, out_features, options)
        trees, neurons = options.trees, options.neurons
        self.weight_in = nn.Parameter(torch.empty(trees, neurons, in_features))
        self.bias_in = nn.Parameter(torch.empty(trees * neurons))
        self.weight_out = nn.Parameter(torch.empty(trees, neurons, out_features))
        self._usage: UsageCounter | None = None
        self.reset_parameters()

    def reset_parameters(self, initializer_range: float = 0.02) -> None:
        """Uniform up to 1 / sqrt(fan-in) as the authors: d for inputs and biases, the path's neurons for outputs."""
        bound = 1 / sqrt(self.in_features)
        nn.init.uniform_(self.weight_in, -bound, bound)
        nn.init.uniform_(self.bias_in, -bound, bound)
        bound = 1 / sqrt(self.options.trees * (self.options.depth + 1))
        nn.init.uniform_(self.weight_out, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        # in the type of the weights under autocast too: the gather gains nothing, and the branches stay exact
        require_floating(x, self.name)
        x_Md = x.reshape(-1, self.in_features).to(self.weight_in.dtype)
        o = self.options
        y_Md, rows_MKD = _Paths.apply(
            x_Md, self.weight_in.flatten(0, 1), self.bias_in, self.weight_out.flatten(0, 1), o.trees, o.depth
        )
        if self._usage is not None and self.collecting and not self.training:
            first_K1 = o.neurons * torch.arange(o.trees, device=x.device).unsqueeze(1)
            self._usage.add(rows_MKD - first_K1)
        return y_Md.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def collect_statistics(self, enabled: bool) -> None:
        """See the base class. The paths of the first 16,384 tokens are counted."""
        super().collect_statistics(enabled)
        if enabled:
            self._usage = UsageCounter(self.options.trees, self.options.neurons)

    def statistics(self) -> dict[str, float]:
        """How the trees are used, over the tokens that were counted.

        Returns:
            code_entropy_bits: entropy of the leaves reached, mean over trees, at most depth.
            leaves_visited: share of all leaves that were reached at least once.
            neurons_visited: share of all neurons that were computed at least once.
        """
        shares_Kn = None if self._usage is None else self._usage.shares()
        if shares_Kn is None:
            return {}
        leaves_KS = shares_Kn[:, -(2**self.options.depth) :] * (self.options.depth + 1)  # one leaf a path
        return {
            "code_entropy_bits": entropy_bits(leaves_KS),
            "leaves_visited": used(leaves_KS),
            "neurons_visited": used(shares_Kn),
        }

    def cost(self) -> cost.Cost:
        """See the base class. Each neuron of a path is an inner product with x and a scaled row of outputs."""
        o, d, outputs = self.options, self.in_features, self.out_features
        computed, neuron = o.trees * (o.depth + 1), d + 1 + outputs
        parts = {"path": computed * 2 * d} | cost.gather(o.trees, o.depth + 1, outputs)
        return cost.of(parts, o.trees * o.neurons * neuron, touched=computed * neuron)
