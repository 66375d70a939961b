"""LookupFFN: hash the token, look rows up in tables, add them (Zeng et al., arXiv 2403.07221).

Departures from the paper, each an option: ``num_probes`` above 1 (the paper's general N; its experiments use 1),
``init="isometric"`` (factors that keep the norm, so that the learned hash counts from the first step),
``input_gradient`` below 1, ``table_std`` and ``normaliser="kept"``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import sqrt

import torch
from torch import Tensor, nn

from lookupffn import cost, ops
from lookupffn.config.schema import option
from lookupffn.errors import unknown_name
from lookupffn.layers.base import FeedForward, Options, UsageCounter, entropy_bits, require, used
from lookupffn.ops.bh4 import FACTORS, next_power_of_two, reference
from lookupffn.ops.hash import NORMALISERS
from lookupffn.ops.limits import MAX_BITS

PROJECTIONS = ("bh4", "dense")
INITS = ("isometric", "paper")
TABLE_TYPES = ("float", "int8")
_LARGEST_TABLE = 1 << MAX_BITS


@dataclass(frozen=True)
class LookupOptions(Options):
    """Options of LookupFFN.

    Attributes:
        num_tables: T; hidden_size / 4 if None.
        table_size: S, rows a table, a power of two from 2.
        projection: "bh4" or "dense".
        block_size: b of BH4, a power of two; the power of two at or below hidden_size / 32, at least 2, if None.
        alpha: weight of BH4(x) against x itself, 0 to 1.
        init: "isometric" (each factor keeps the norm) or "paper" (the authors': BH4 starts nearly at zero).
        num_probes: N, how many of the largest softmax terms are kept, 1 to table_size.
        input_gradient: share of the gradient with respect to x that is handed on to the layers before, 0 to 1. With all
            of it the whole model learns more slowly at GEMM's learning rates (docs/results.md). The authors': 1.
        normaliser: the scores' softmax runs over "all" sign codes (the paper's) or the "kept" ones (no kernels).
        table_std: standard deviation of the tables at the start; the authors' is 0.02.
        table_type: "float" (trainable), or "int8" with a scale a row, for tables that ``quantize_tables`` has made.
    """

    num_tables: int | None = option(None, at_least=1, symbol="T")
    table_size: int = option(256, at_least=2, at_most=_LARGEST_TABLE, power_of_two=True, symbol="S")
    projection: str = option("bh4", choices=PROJECTIONS)
    block_size: int | None = option(None, at_least=1, symbol="b")
    alpha: float = option(0.7, at_least=0, at_most=1)
    init: str = option("isometric", choices=INITS)
    num_probes: int = option(3, at_least=1, symbol="N")
    input_gradient: float = option(0.1, at_least=0, at_most=1)
    normaliser: str = option("all", choices=NORMALISERS)
    table_std: float = option(0.02, at_least=0)
    table_type: str = option("float", choices=TABLE_TYPES)

    def resolve(self, hidden_size: int) -> LookupOptions:
        """See the base class."""
        tables = self.num_tables or max(1, hidden_size // 4)
        # bit_length rounds down to a power of two
        block = self.block_size or 1 << (max(2, hidden_size // 32).bit_length() - 1)
        S, N = self.table_size, self.num_probes
        require(N <= S, "lookup", f"num_probes must be from 1 to table_size ({S}), not {N}")
        if self.projection == "bh4":
            require(
                block <= hidden_size,
                "lookup",
                f"block_size {block} needs a hidden size of at least as much, not {hidden_size}",
            )
            padded = next_power_of_two(hidden_size)
            require(
                padded % block == 0,
                "lookup",
                f"block_size {block} does not divide {padded} (the hidden size {hidden_size} padded to a power of two)",
            )
        return replace(self, num_tables=tables, block_size=block)

    @property
    def bits(self) -> int:
        """tau, bits a code."""
        return self.table_size.bit_length() - 1


class LookupFFN(FeedForward):
    """y = bias + sum over tables k and probes n of score[k, n] * table[k, code[k, n]].

    Parameters: ``projection`` (bh4: [r, 4, d'/b, b, b], dense: [T * tau, d]), ``projection_bias`` [T * tau],
    ``table`` [T, S, outputs], ``bias`` [outputs]. With int8 tables ``table`` and ``table_scales`` [T, S] are buffers.
    """

    name = "lookup"
    Options = LookupOptions
    options: LookupOptions

    def __init__(self, in_features: int, out_features: int, options: LookupOptions) -> None:
        super().__init__(in_features, out_features, options)
        self.hash_size = options.num_tables * options.bits
        if options.projection == "bh4":
            padded, b = next_power_of_two(in_features), options.block_size
            self.copies = -(-self.hash_size // padded)
            shape = (self.copies, FACTORS, padded // b, b, b)
        else:
            shape = (self.hash_size, in_features)
        self.projection = nn.Parameter(torch.empty(shape))
        self.projection_bias = nn.Parameter(torch.empty(self.hash_size))
        shape = (options.num_tables, options.table_size, out_features)
        if options.table_type == "int8":  # to be loaded into
            self.register_buffer("table", torch.zeros(shape, dtype=torch.int8))
            self.register_buffer("table_scales", torch.ones(shape[:2]))
        else:
            self.table = nn.Parameter(torch.empty(shape))
            self.register_buffer("table_scales", None)
        self.bias = nn.Parameter(torch.empty(out_features))
        self._usage: UsageCounter | None = None
        self.reset_parameters()

    def reset_parameters(self, initializer_range: float = 0.02) -> None:
        """Tables table_std N(0, 1) and output bias 0.001 N(0, 1) as the authors; the projection by ``init``.

        bh4: N(0, 1/b) (isometric) or N(0, 1/(b d')) (paper). dense: N(0, 1/d), which gives hash inputs of unit
        variance after a LayerNorm, or N(0, initializer_range^2) (paper).
        """
        isometric = self.options.init == "isometric"
        if self.options.projection == "bh4":
            b = self.options.block_size
            std = 1 / sqrt(b) if isometric else 1 / sqrt(b * next_power_of_two(self.in_features))
        else:
            std = 1 / sqrt(self.in_features) if isometric else initializer_range
        nn.init.normal_(self.projection, std=std)
        nn.init.zeros_(self.projection_bias)
        if self.table_scales is None:
            nn.init.normal_(self.table, std=self.options.table_std)
        nn.init.normal_(self.bias, std=0.001)

    def hash_inputs(self, x: Tensor) -> Tensor:
        """z, what the codes are the signs of.

        Args:
            x: [M, d].

        Returns:
            [M, T, tau].
        """
        return ops.hash_inputs(x, self._weights())

    @torch.no_grad()
    def projection_matrix(self) -> Tensor:
        """The projection without its bias as one matrix [T * tau, d], in float64: the same on every machine."""
        if self.options.projection == "dense":
            return self.projection.double()
        unit = torch.eye(self.in_features, dtype=torch.float64, device=self.projection.device)
        offset = torch.zeros(self.hash_size, dtype=torch.float64, device=self.projection.device)
        return reference.bh4_mix(unit, self.projection.double(), offset, self.options.alpha).t()

    def _weights(self) -> ops.LookupWeights:
        return ops.LookupWeights(
            self.projection,
            self.projection_bias,
            self.table,
            self.bias,
            self.table_scales,
            self.options.alpha,
            self.options.num_probes,
            self.options.normaliser,
        )

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        x_Md = ops.scale_gradient(x.reshape(-1, self.in_features), self.options.input_gradient)
        if self.collecting and not self.training and self._usage.room:
            counted_Md = x_Md[: self._usage.room]
            self._usage.add(ops.nearest_codes(self.hash_inputs(counted_Md), self.options.num_probes)[0])
        return ops.lookup_ffn(x_Md, self._weights()).view(*x.shape[:-1], self.out_features)

    @torch.no_grad()
    def prepared(self, precision: str = "float") -> Callable[[Tensor], Tensor]:
        """This layer at inference as a function of [..., in_features], its weights prepared and checked once.

        For weights that no longer change: it shares them with the layer, and need not see what is written later.

        Args:
            precision: "float", as the weights are, or "int8": tables, scores and, where faster, the projection.

        Raises:
            UserError: another precision.
        """
        if precision not in ("float", "int8"):
            raise unknown_name("precision of a prepared lookup", precision, ("float", "int8"))
        weights = self._weights()
        if precision == "int8" and weights.scales is None:
            weights.table, weights.scales = ops.quantized(weights.table)
        kind = ops.PreparedInt8 if precision == "int8" else ops.PreparedLookup
        function = kind(weights, self.in_features, ops.lookup_ffn)

        def run(x: Tensor) -> Tensor:
            if x.dim() == 2:
                return function(x)
            return function(x.reshape(-1, self.in_features)).view(*x.shape[:-1], self.out_features)

        return run

    def parameter_roles(self) -> dict[str, list[nn.Parameter]]:
        """See the base class."""
        tables = [] if self.table_scales is not None else [self.table]
        return {"tables": tables, "hash": [self.projection, self.projection_bias]}

    def collect_statistics(self, enabled: bool) -> None:
        """See the base class. The codes of the first 16,384 tokens are counted."""
        super().collect_statistics(enabled)
        if enabled:
            self._usage = UsageCounter(*self.table.shape[:2])

    def statistics(self) -> dict[str, float]:
        """How the tables are used, over the tokens that were counted.

        Returns:
            code_entropy_bits: entropy of the rows read, mean over tables, at most tau.
            rows_addressed: share of all rows that were read at least once.
        """
        shares = None if self._usage is None else self._usage.shares()
        if shares is None:
            return {}
        return {"code_entropy_bits": entropy_bits(shares), "rows_addressed": used(shares)}

    @torch.no_grad()
    def quantize_tables(self) -> None:
        """Round the tables to int8 with one scale a row: a quarter of the memory, for inference.

        A row is off by at most 1/254 of its largest element. The tables stop being parameters. The state dictionary
        loads into a feed-forward of ``table_type="int8"``.
        """
        if self.table_scales is not None:
            return
        quantized, scales = ops.quantized(self.table)
        del self.table, self.table_scales
        self.register_buffer("table", quantized)
        self.register_buffer("table_scales", scales)
        self.options = replace(self.options, table_type="int8")

    def cost(self) -> cost.Cost:
        """See the base class. One token reads num_tables * num_probes rows."""
        o, d, outputs = self.options, self.in_features, self.out_features
        if o.projection == "bh4":
            parts = cost.bh4_projection(next_power_of_two(d), self.copies, o.block_size)
        else:
            parts = {"projection": cost.linear(d, self.hash_size).flops}
        parts |= cost.hash_codes(o.num_tables, o.bits, o.num_probes)
        parts |= cost.gather(o.num_tables, o.num_probes, outputs)
        dense = self.projection.numel() + self.hash_size + outputs
        rows = o.num_tables * o.num_probes
        total = cost.of(parts, dense + self.table.numel(), touched=dense + rows * outputs)
        if o.table_type == "int8":
            total = replace(total, bytes=cost.BYTES_PER_PARAMETER * (dense + rows) + rows * outputs)
        return total
