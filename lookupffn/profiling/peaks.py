"""What torch attains on this machine, and what a call must move: the yardsticks of scripts/benchmark_ffn.py.

The full profile of a machine is measure.py's.
"""

from __future__ import annotations

import torch

from lookupffn.layers.base import FeedForward
from lookupffn.profiling.clock import by_turns

_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


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
    return (rows + dense / tokens) * _BYTES[precision] + 2 * d * inputs
