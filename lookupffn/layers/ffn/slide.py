"""SLIDE: hash the token and compute only the neurons in its buckets (Chen et al., arXiv 1903.03129).

The rows of the first weight matrix are hashed into L SimHash tables of K bits. A token retrieves the neurons that share
its bucket in at least one table; these are computed exactly, all others count as zero.

What is computed here and what it costs are two things. Training and evaluation run both dense products and put a mask
between them, which gives what a sparse implementation would give and is the fastest way at these sizes; ``cost`` counts
what inference has to execute: the token's hashes and the neurons it retrieved.

Departures from the paper:
- It samples neurons until it has enough of them; here all of a token's buckets are taken, as where the LookupFFN paper
  (arXiv 2403.07221) compares it.
- Tables are rebuilt at every training forward by default, as in that comparison; the paper's own schedule is
  ``rebuild_every=50`` and a ``rebuild_growth`` above 1.
- At evaluation the codes are those of the current weights, whatever the schedule. Nothing of it is kept.
- Buckets have no size limit, and a whole layer is rebuilt at once.

Dimensions: M tokens, d hidden size, n neurons, L tables, K bits, H = L * K hash projections, W = ceil(n / 8) bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lookupffn import cost, ops
from lookupffn.config.schema import option
from lookupffn.layers.base import FeedForward, Options
from lookupffn.ops.precision import autocast

LARGEST_BITS = 12  # 4,096 buckets a table: more than there are neurons
_ZEROS = 2 / 3  # of a hash projection's coefficients, as in the paper
_MOMENTUM = 0.99  # of the running average of retrieved neurons
_NOT_MEASURED = -1.0


@dataclass(frozen=True)
class SlideOptions(Options):
    """Options of SLIDE.

    Attributes:
        intermediate_size: n, neurons; 4 * hidden_size if None.
        bits: K of a table, 1 to 12: a table has 2^K buckets.
        num_tables: L.
        tokens_per_pass: P consecutive tokens, counted through the flattened batch, compute the union of what they
            retrieved, in training and in evaluation. Above 1, an output depends on the other tokens of its pass: on the
            order of tokens within a sequence where P divides its length, on the batch where it does not.
        rebuild_every: training forwards before the second building of the tables; the first forward builds them.
        rebuild_growth: each wait for a rebuilding is this many times the one before, at least 1. The paper's decay
            exp(lambda).
    """

    intermediate_size: int | None = option(None, at_least=1, shared=True)
    bits: int = option(9, at_least=1, at_most=LARGEST_BITS)
    num_tables: int = option(50, at_least=1)
    tokens_per_pass: int = option(1, at_least=1)
    rebuild_every: int = option(1, at_least=1)
    rebuild_growth: float = option(1.0, at_least=1)

    def resolve(self, hidden_size: int) -> SlideOptions:
        """See the base class."""
        return replace(self, intermediate_size=self.intermediate_size or 4 * hidden_size)


class SlideFFN(FeedForward):
    """y = W2 gelu(W1 x + b1) + b2 over the neurons that x retrieves; b2 where it retrieves none.

    Parameters: ``intermediate`` and ``output``, GEMM's two layers.
    Buffers: ``planes`` [d, H], whose signs are the hash projections; ``codes`` [L, n] of the neurons as last built;
    ``forwards`` and ``rebuilds`` in training; ``neurons_per_token``, as last measured.
    """

    name = "slide"
    Options = SlideOptions
    options: SlideOptions

    def __init__(self, in_features: int, out_features: int, options: SlideOptions) -> None:
        super().__init__(in_features, out_features, options)
        self.intermediate = nn.Linear(in_features, options.intermediate_size)
        self.output = nn.Linear(options.intermediate_size, out_features)
        self.create_hash()
        self.register_buffer("codes", torch.zeros(options.num_tables, options.intermediate_size, dtype=torch.int32))
        self.register_buffer("forwards", torch.zeros((), dtype=torch.int64))
        self.register_buffer("rebuilds", torch.zeros((), dtype=torch.int64))
        self.register_buffer("neurons_per_token", torch.zeros(()))
        self.reset_parameters()

    def create_hash(self) -> None:
        """Make what ``projections`` multiplies by."""
        self.register_buffer("planes", torch.empty(self.in_features, self.options.num_tables * self.options.bits))

    def reset_parameters(self, initializer_range: float = 0.02) -> None:
        """N(0, initializer_range^2) weights and zero biases, as BERT; hash projections anew, tables not yet built."""
        for layer in (self.intermediate, self.output):
            nn.init.normal_(layer.weight, std=initializer_range)
            nn.init.zeros_(layer.bias)
        self.reset_hash()
        for buffer in (self.codes, self.forwards, self.rebuilds):
            nn.init.zeros_(buffer)
        nn.init.constant_(self.neurons_per_token, _NOT_MEASURED)

    def reset_hash(self) -> None:
        """A third of each projection's coefficients is +1 or -1 at random, the others are 0."""
        nn.init.sparse_(self.planes, sparsity=_ZEROS, std=1.0)

    def projections(self, v: Tensor) -> Tensor:
        """[..., d] tokens or neurons to [..., H], whose signs are the hash bits."""
        return v @ self.planes.sign()

    def is_due(self, codes_Ln: Tensor) -> Tensor:
        """Whether this training forward rebuilds the tables, a bool tensor [].

        Args:
            codes_Ln: codes of the current weights.
        """
        o = self.options
        waits = self.rebuilds.float()  # the t-th rebuilding is due at the sum of the first t waits
        if o.rebuild_growth > 1:
            waits = (o.rebuild_growth**waits - 1) / (o.rebuild_growth - 1)
        return self.forwards >= o.rebuild_every * waits

    def learn_hash(self, x_Md: Tensor, inner_Mn: Tensor, retrieved_Mn: Tensor) -> None:
        """Called in every forward with the inner products and what each token retrieved. Random planes learn nothing.

        Args:
            x_Md: the tokens.
            inner_Mn: W1 x + b1.
            retrieved_Mn: bool.
        """

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        x_Md = x.reshape(-1, self.in_features)
        inner_Mn = self.intermediate(x_Md)
        retrieved_Mn = self.retrieve(x_Md)
        self.learn_hash(x_Md, inner_Mn, retrieved_Mn)
        computed_Mn = unite(retrieved_Mn, self.options.tokens_per_pass)
        self.measure(computed_Mn)
        # gelu(0) = 0: a skipped neuron adds nothing
        return self.output(F.gelu(inner_Mn.masked_fill(~computed_Mn, 0))).view(*x.shape[:-1], self.out_features)

    @torch.no_grad()
    def retrieve(self, x_Md: Tensor) -> Tensor:
        """Which neurons share a bucket with each token: bool [M, n]. In training this is where tables are rebuilt."""
        # a code must not depend on the precision of the rest
        with autocast(x_Md.device, enabled=False):
            weight_nd = self.intermediate.weight
            token_codes_ML = self.hash(x_Md.to(weight_nd.dtype))
            codes_Ln = self.hash(weight_nd).T
            if self.training:
                # a choice on the device: reading a number back would make a GPU wait at every layer
                due = self.is_due(codes_Ln)
                codes_Ln = torch.where(due, codes_Ln, self.codes)
                self.codes.copy_(codes_Ln)
                self.rebuilds.add_(due)
                self.forwards.add_(1)
        return shared_buckets(token_codes_ML, codes_Ln, self.options.bits)

    def hash(self, v: Tensor) -> Tensor:
        """Codes of tokens or neurons, [rows, d] to [rows, L] int32."""
        return ops.nearest_codes(self.projections(v).unflatten(-1, (self.options.num_tables, -1)), 1)[0].squeeze(-1)

    @torch.no_grad()
    def measure(self, computed_Mn: Tensor) -> None:
        """Count computed neurons: a running average in training, statistics in evaluation."""
        M = computed_Mn.shape[0]
        if self.training and M:
            now = computed_Mn.sum() / M
            running = _MOMENTUM * self.neurons_per_token + (1 - _MOMENTUM) * now
            self.neurons_per_token.copy_(torch.where(self.neurons_per_token < 0, now, running))
        elif self.collecting:
            self._tokens += M
            self._retrievals_n += computed_Mn.sum(0)

    def collect_statistics(self, enabled: bool) -> None:
        """See the base class. On stopping, the average over the tokens seen becomes what ``cost`` reckons with."""
        if enabled:
            self._tokens = 0
            self._retrievals_n = torch.zeros_like(self.codes[0], dtype=torch.int64)
        elif self.collecting and self._tokens:
            self.neurons_per_token.fill_(self.statistics()["neurons_per_token"])
        super().collect_statistics(enabled)

    def statistics(self) -> dict[str, float]:
        """neurons_per_token computed on average, and the share of neurons_used by any token."""
        if not getattr(self, "_tokens", 0):
            return {}
        return {
            "neurons_per_token": self._retrievals_n.sum().item() / self._tokens,
            "neurons_used": (self._retrievals_n > 0).float().mean().item(),
        }

    def average_neurons(self) -> float:
        """Neurons a token computes, as last measured; before that, what independent random codes would give."""
        if not self.neurons_per_token.is_meta and (measured := self.neurons_per_token.item()) >= 0:
            return measured
        o = self.options
        return o.intermediate_size * (1 - (1 - 2.0**-o.bits) ** (o.num_tables * o.tokens_per_pass))

    def hash_flops(self) -> int:
        """FLOPs of a token's hashes: its projections only add and subtract, a third of the coordinates each."""
        added = self.in_features - ceil(_ZEROS * self.in_features)
        return added * self.options.num_tables * self.options.bits

    def cost(self) -> cost.Cost:
        """See the base class.

        Tables are built once, for inference does not change weights. Reading buckets and uniting them are integer
        operations and count nothing; random planes, as buckets, are no parameters.
        """
        n, neurons = self.options.intermediate_size, self.average_neurons()
        parameters = sum(p.numel() for p in self.parameters())
        # a row of W1, its bias and a column of W2 are left alone by whoever does not compute the neuron
        skipped = (n - neurons) * (self.in_features + 1 + self.out_features)
        parts = {"hash": self.hash_flops(), "neurons": 2 * (self.in_features + self.out_features) * neurons}
        return cost.of(parts, parameters, touched=parameters - skipped)


def shared_buckets(token_codes_ML: Tensor, codes_Ln: Tensor, bits: int) -> Tensor:
    """Which neurons have a token's code in at least one table.

    A bucket is a set of neurons, a bit each, so that a token's buckets are united by L operations on n / 8 bytes.

    Args:
        token_codes_ML: [M, L], from 0 to 2^bits - 1.
        codes_Ln: [L, n], the neurons' codes.
        bits: K.

    Returns:
        bool [M, n].
    """
    L, n = codes_Ln.shape
    S, W, device = 1 << bits, -(-n // 8), codes_Ln.device
    neuron_n = torch.arange(n, device=device)
    table_L1 = torch.arange(L, device=device).unsqueeze(1)
    byte_Ln = (table_L1 * S + codes_Ln) * W + neuron_n // 8
    bit_n = torch.bitwise_left_shift(torch.ones_like(neuron_n), neuron_n % 8).to(torch.uint8)
    bucket_LSW = torch.zeros(L * S * W, dtype=torch.uint8, device=device)
    # different bits never carry, so adding them is uniting them
    bucket_LSW = bucket_LSW.scatter_add_(0, byte_Ln.flatten(), bit_n.repeat(L)).view(L, S, W)
    found_MW = torch.zeros(token_codes_ML.shape[0], W, dtype=torch.uint8, device=device)
    for table, bucket_SW in enumerate(bucket_LSW):
        found_MW |= bucket_SW[token_codes_ML[:, table]]
    return (found_MW.unsqueeze(-1) & bit_n[:8]).bool().flatten(1)[:, :n]


def unite(retrieved_Mn: Tensor, tokens_per_pass: int) -> Tensor:
    """Give every token what any token of its pass retrieved; the last pass may be shorter. bool [M, n] to the same."""
    P, M = tokens_per_pass, len(retrieved_Mn)
    if P == 1:
        return retrieved_Mn
    padded = F.pad(retrieved_Mn, (0, 0, 0, -M % P))
    return padded.unflatten(0, (-1, P)).any(1).repeat_interleave(P, 0)[:M]
