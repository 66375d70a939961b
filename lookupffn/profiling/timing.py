"""What is timed and how: a lookup's shape and precision, calls by turns, and the yardsticks of this machine.

The full profile of a machine is measure.py's.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lookupffn.layers.base import FeedForward
from lookupffn.ops.bh4 import next_power_of_two
from lookupffn.ops.limits import SMALLEST_BLOCK

BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


@dataclass(frozen=True)
class Point:
    """A lookup of a shape and a way to run it; the GEMM beside it has 4 d neurons.

    Attributes:
        d: hidden size.
        tables: T.
        rows: S, rows a table.
        probes: N.
        block: b of BH4; 0 for a dense projection.
        tokens: of a call.
        precision: "float32", "bfloat16" or "int8".
        threads: torch's.
        offset: of all inputs, which makes codes less even: their entropy falls. Only measuring looks at it.
    """

    d: int
    tables: int
    rows: int
    probes: int
    block: int
    tokens: int
    precision: str
    threads: int
    offset: float = 0.0

    @property
    def bits(self) -> int:
        """tau."""
        return self.rows.bit_length() - 1

    @property
    def padded(self) -> int:
        """d', the size of BH4."""
        return next_power_of_two(self.d)

    @property
    def joined_block(self) -> int:
        """b as the kernels have it."""
        return min(max(self.block, SMALLEST_BLOCK), self.padded)

    @property
    def copies(self) -> int:
        """r of BH4."""
        return -(-self.tables * self.bits // self.padded)


def input_type(precision: str) -> torch.dtype:
    """The type of inputs and outputs: int8 is the weights' alone."""
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def in_precision(module: FeedForward, precision: str) -> Callable[[Tensor], Tensor]:
    """The feed-forward for inference with weights of a precision.

    Args:
        module: in evaluation mode; it is changed.
        precision: "float32" and "bfloat16", which give the module itself; or "int8", which gives a lookup prepared for
            the int8 kernels, and any other feed-forward with torch's dynamic quantisation of its Linears.
    """
    if precision != "int8":
        return module.to(input_type(precision))
    if hasattr(module, "prepared"):
        return module.prepared("int8")
    return dynamic_int8(module)


def dynamic_int8(module: nn.Module) -> nn.Module:
    """A copy whose Linears are in int8, by torch's dynamic quantisation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the move of its quantisation elsewhere
        return torch.ao.quantization.quantize_dynamic(module, {nn.Linear}, dtype=torch.qint8)


def by_turns(functions: Mapping[str, Callable[[], Any]], *, seconds: float = 0.5, least: int = 7) -> dict[str, float]:
    """Seconds a call of each function, the lower quartile over rounds in which each is called once.

    Other work makes a call slower and never faster, so that a quartile is nearer to the
    undisturbed time than the median.

    Args:
        functions: what to call, by name.
        seconds: how long to go on, all functions together.
        least: rounds at least.
    """
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < least or time.perf_counter() < end:
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
        rounds += 1
    return {name: float(np.quantile(values, 0.25)) for name, values in times.items()}


def machine_peaks(repeat: int) -> dict[str, float]:
    """Measured GFLOP/s of a float32 matrix product, and GB/s of reading 256 MB and of copying it."""
    a = torch.randn(2048, 2048)
    big, out = torch.randn(1 << 26), torch.empty(1 << 26)
    functions = {"gemm": lambda: a @ a, "read": lambda: big.sum(), "copy": lambda: out.copy_(big)}
    seconds = by_turns(functions, seconds=0, least=repeat)
    size = big.numel() * 4 / 1e9
    return {
        "gflops": 2 * 2048**3 / seconds["gemm"] / 1e9,
        "read_gbs": size / seconds["read"],
        "copy_gbs": 2 * size / seconds["copy"],
    }


def bytes_moved(module: FeedForward, tokens: int, precision: str) -> float:
    """Bytes a token: input, output, and parameters, a table row each time a token reads it, anything else once a call.

    Args:
        module: a feed-forward.
        tokens: of the call.
        precision: "float32", "bfloat16" or "int8", which changes tables and GEMM's weights alone.
    """
    touched, d = module.cost().parameters_touched, module.in_features
    rows = getattr(module.options, "num_tables", 0) * getattr(module.options, "num_probes", 0) * d
    dense = max(0.0, touched - rows)
    inputs = 2 if precision == "bfloat16" else 4
    return (rows + dense / tokens) * BYTES[precision] + 2 * d * inputs
