"""The time of GEMM: torch's Linear in the point's precision, twice, and GELU."""

from __future__ import annotations

from collections.abc import Mapping

from lookupffn import cost
from lookupffn.profiling.explain.work import TILE_PRODUCT, has_tiles
from lookupffn.profiling.machine import Machine
from lookupffn.profiling.timing import BYTES, Point

_GELU_OPERATIONS = 8
_MOST_ALONE = 4  # tokens of a product in float32 that stays on one thread
_LARGEST_KEPT = 32 << 20  # bytes: glibc takes larger memory from the system anew at each call, in pages to be cleared


def weights_seconds(
    name: str, size: float, tokens: int, threads: int, machine: Machine, shares: Mapping[str, float]
) -> float:
    """Seconds until a product of torch has its weights.

    One thread puts them into the product's own order at every call; those of int8 have been put before, and one token
    in float32 takes them as they are.

    Args:
        name: the precision.
        size: bytes of the weights; as many of another product lie between two calls.
        tokens: of a call.
        threads: of the product.
        machine: where.
        shares: what torch attains.
    """
    copied = name == "bfloat16" or (name == "float32" and tokens > 1)
    share = shares[f"product_{'packing' if copied else 'weights'}_{name}"]
    return size / (share * 1e9 * machine.stream_rate(2 * size, threads if name == "int8" else 1))


def gemm_parts(
    point: Point, machine: Machine, shares: Mapping[str, float], neurons: int | None = None
) -> dict[str, float]:
    """Seconds of GEMM's parts.

    Args:
        point: its tables do not count.
        machine: where.
        shares: what torch attains.
        neurons: 4 d if None.
    """
    name, d, tokens = point.precision, point.d, point.tokens
    threads = min(point.threads, machine.cores)
    neurons = 4 * d if neurons is None else neurons
    peak = 1e9 * machine.arithmetic["float32"].of(threads)
    size = cost.gemm_ffn(d, neurons).parameters * BYTES[name]
    flops = tokens * cost.gemm_ffn(d, neurons).flops / 2
    attained_share = TILE_PRODUCT if name != "float32" and has_tiles(machine) else shares[f"product_{name}"]
    busy = 1 if name == "float32" and tokens <= _MOST_ALONE else threads
    product = flops / (attained_share * 1e9 * machine.arithmetic[name].of(busy))
    product += weights_seconds(name, size / 2, tokens, threads, machine, shares)
    # torch rounds and scales for int8 on one thread
    own = 1e9 * machine.arithmetic["float32"].one if name == "int8" else peak
    product += tokens * (d + neurons) / (shares[f"elements_{name}"] * own)
    hidden = 4 * tokens * neurons if name == "int8" else BYTES[name] * tokens * neurons
    fresh = 1e-6 * machine.call_us["page"] * hidden / 4096 if hidden >= _LARGEST_KEPT else 0.0
    fresh *= shares[f"fresh_{name}"] / threads
    start = 1e-6 * shares[f"gemm_start_us_{name}"] if threads > 1 else 0.0
    calls = machine.call_us
    call = 1e-6 * shares["gemm_call"] * calls.get(f"gemm_{name}", calls["gemm"])
    return {
        "call": call + 3 * start,
        "first product": product + fresh,
        "activation": _GELU_OPERATIONS * tokens * neurons / (shares[f"activation_{name}"] * peak) + fresh,
        "second product": product,
    }
