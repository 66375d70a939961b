"""What share of a machine's peaks the kernels, and torch's products, attain: attained.yaml, found by ``fit``.

The shares belong to the kernels, not to a machine: they are fitted once, on measured points, and used for all machines.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from lookupffn.profiling.machine import rounded

PATH = Path(__file__).with_name("attained.yaml")

# name: (where the search starts, what it is)
MEANING: dict[str, tuple[float, str]] = {
    "between": (1.0, "times GEMM's weights that drive rows out of the caches between two calls"),
    "call": (1.2, "times the machine's smallest call of a lookup"),
    "call_cold": (15.0, "times that which a call takes longer where work has driven Python out of the caches"),
    "check": (0.5, "share of the streaming rate at which a call sees whether BH4's weights have changed"),
    "narrow_cycles": (4.0, "cycles an output that is rounded to bfloat16"),
    "start_us": (2.0, "microseconds a parallel region of a lookup, with several threads"),
    "projection": (0.85, "share of the float32 peak in BH4's block products"),
    "projection_bfloat16": (0.55, "the same in bfloat16, of twice that peak at most"),
    "projection_edge": (8.0, "a block's products cost as if it were this much longer"),
    "weights": (0.3, "share of the streaming rate at which BH4's weights are read"),
    "transform": (0.6, "share of the streaming rate in the transforms across blocks"),
    "hash": (0.12, "share of the float32 peak in codes and scores"),
    "put_cycles": (10.0, "cycles a read whose code is stored by itself, as for fewer than 16 tokens"),
    "sliced": (0.76, "share of the rate of random rows, in slices that fit the second-level cache"),
    "sums": (0.6, "share of the streaming rate at which sums are read and written between slices"),
    "direct": (0.65, "share of the rate of random rows, read whole"),
    "direct_memory": (0.85, "the same where the rows in use are more than the last cache holds"),
    "read_cycles": (40.0, "cycles a row that is read whole, whatever its length"),
    "adds": (0.3, "share of the float32 peak in adding whole rows"),
    "adds_bfloat16": (0.2, "the same for bfloat16 rows, which are widened"),
    "packing": (0.45, "share of the streaming rate in copying tables into slices"),
    "packing_widen": (0.05, "share of the float32 peak in widening bfloat16 as it is packed"),
    "int8_product": (0.8, "share of the int8 peak in the projection multiplied out"),
    "int8_weights": (0.5, "share of the streaming rate at which its matrix is read"),
    "int8_round": (0.15, "share of the float32 peak in rounding inputs to int8, an operation each"),
    "int8_put_cycles": (10.0, "cycles a read whose row and score are put beside each other"),
    "int8_turn_cycles": (12.0, "cycles a token and table to put what BH4 gives in the order of hashing"),
    "int8_scales": (1.0, "share of the rate of random lines at which the rows' scales are read"),
    "int8_read_cycles": (3.0, "cycles of adding a row of 64 columns of int8, wherever it lies"),
    "int8_token_cycles": (400.0, "cycles a token and chunk of 64 columns, beside its rows"),
    "int8_pass_cycles": (60.0, "cycles a token, chunk and further slice of the tables, for reading its sums again"),
    "int8_near": (1.0, "share of the rate of random rows of 64 bytes in the second-level cache"),
    "int8_far": (0.8, "the same, read for the first time in a call where slices do not pay"),
    "int8_stream": (0.35, "share of the streaming rate at which slices of the tables come ahead of their use"),
    "gemm_call": (1.1, "times the machine's smallest call of GEMM in the precision"),
    "gemm_start_us_float32": (1.5, "microseconds a parallel region of GEMM, with several threads"),
    "gemm_start_us_bfloat16": (15.0, "the same for bfloat16"),
    "gemm_start_us_int8": (3.0, "the same for int8"),
    "product_float32": (0.8, "share of the float32 peak in torch's product"),
    "product_bfloat16": (0.85, "the same for bfloat16"),
    "product_int8": (0.8, "the same for int8"),
    "product_weights_float32": (0.45, "share of the streaming rate at which one token reads GEMM's weights"),
    "product_packing_float32": (0.2, "share of it at which they are put in order for several tokens, by one thread"),
    "product_packing_bfloat16": (0.3, "the same for bfloat16"),
    "product_weights_int8": (0.6, "share of the streaming rate at which those in int8 are read"),
    "elements_float32": (0.16, "share of the float32 peak in reading inputs and writing outputs, an operation each"),
    "elements_bfloat16": (0.15, "the same for bfloat16"),
    "elements_int8": (0.05, "the same for int8, where they are rounded and scaled"),
    "fresh_float32": (1.0, "times the machine's time to clear the pages of a result that is larger than 32 MB"),
    "fresh_bfloat16": (1.0, "the same for bfloat16"),
    "fresh_int8": (1.2, "the same for int8"),
    "activation_float32": (0.08, "share of the float32 peak in GELU, 8 operations an element"),
    "activation_bfloat16": (0.13, "the same for bfloat16"),
    "activation_int8": (0.14, "the same beside int8 products, in float32"),
}


@cache
def attained() -> Mapping[str, float]:
    """The shares that were found on measured machines; where the search starts for those that were not."""
    starts = {name: start for name, (start, _) in MEANING.items()}
    found = yaml.safe_load(PATH.read_text(encoding="utf-8"))["shares"] if PATH.is_file() else {}
    return {name: found.get(name, start) for name, start in starts.items()}


def save(shares: Mapping[str, float], about: Mapping[str, Any]) -> None:
    """Writes attained.yaml: the shares, each with its meaning, and where they were found."""
    lines = ["# Written by scripts/check_hardware.py fit; the kernels' shares of a machine's peaks.", "about:"]
    lines += [f"  {key}: {value}" for key, value in about.items()]
    lines.append("shares:")
    lines += [f"  {name}: {rounded(shares[name])} # {meaning}" for name, (_, meaning) in MEANING.items()]
    PATH.write_text("\n".join(lines) + "\n", encoding="utf-8")
    attained.cache_clear()
