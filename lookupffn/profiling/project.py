"""Predicted times over shapes and machines: where a lookup is faster than GEMM, and what binds it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, log
from typing import Any

from lookupffn.errors import UserError
from lookupffn.layers import build_ffn, resolve_options
from lookupffn.layers.ffn.lookup import LookupOptions
from lookupffn.profiling.attained import attained
from lookupffn.profiling.explain import Prediction, gemm_parts, predict
from lookupffn.profiling.machine import TYPES, Machine
from lookupffn.profiling.timing import BYTES, Point

TOKENS = (1, 4, 16, 64, 128, 512, 2048, 8192, 32768)
SIZES = (128, 256, 512, 768, 1024, 1536, 2048, 3072, 4096)
ROWS = (16, 64, 256, 1024, 4096, 16384)
_LARGEST_TABLES = 1 << 36  # bytes


@dataclass(frozen=True)
class Projected:
    """A point and what is predicted for it."""

    point: Point
    prediction: Prediction

    @property
    def us_a_token(self) -> float:
        """Microseconds of the lookup."""
        return 1e6 * self.prediction.lookup_seconds / self.point.tokens


def base_point(model: Mapping[str, Any], ffn: Mapping[str, Any], tokens: int, precision: str, threads: int) -> Point:
    """The point that configs describe.

    Args:
        model: configs/model/*.yaml's content.
        ffn: configs/ffn/*.yaml's content, a lookup's.
        tokens: of a call.
        precision: one of "float32", "bfloat16", "int8".
        threads: how many.

    Raises:
        UserError: another feed-forward, or values that cannot be.
    """
    options = dict(ffn)
    name = options.pop("name")
    if name != "lookup":
        raise UserError(f"a projection is of lookups and GEMM beside them: ffn=lookup, not ffn={name}")
    if precision not in TYPES:
        raise UserError(f"precision must be one of {', '.join(TYPES)}, not {precision!r}")
    if min(tokens, threads) < 1:
        raise UserError("tokens and threads must be at least 1")
    d = model["hidden_size"]
    resolved: Any = resolve_options(name, d, options)
    return point_of(resolved, d, tokens, precision, threads)


def point_of(options: LookupOptions, d: int, tokens: int, precision: str, threads: int) -> Point:
    """The point of a lookup's resolved options."""
    block = options.block_size if options.projection == "bh4" else 0
    shape = options.num_tables, options.table_size, options.num_probes, block
    return Point(d, *shape, tokens, precision, threads)


def resized(point: Point, d: int) -> Point:
    """The same recipe at another hidden size: tables and blocks in proportion."""
    block = max(2, 1 << (d * point.block // point.d).bit_length() - 1) if point.block else 0
    return replace(point, d=d, tables=max(1, point.tables * d // point.d), block=block)


def axes(point: Point) -> dict[str, list[Point]]:
    """One axis of the space at a time, the others as the point has them."""
    tables = sorted({max(1, point.d * k // 16) for k in (1, 2, 4, 8, 16)} | {point.tables})
    return {
        "hidden size": [resized(point, d) for d in SIZES],
        "tokens": [replace(point, tokens=tokens) for tokens in TOKENS],
        "tables": [replace(point, tables=count) for count in tables],
        "rows a table": [
            replace(point, rows=rows) for rows in ROWS if _bytes(replace(point, rows=rows)) < _LARGEST_TABLES
        ],
        "precision": [replace(point, precision=precision) for precision in TYPES],
    }


def _bytes(point: Point) -> float:
    return point.tables * point.rows * point.d * BYTES[point.precision]


def project(points: Iterable[Point], machine: Machine) -> list[Projected]:
    """Predictions for some points."""
    return [Projected(point, predict(point, machine)) for point in points]


def grid(point: Point, machine: Machine, precision: str) -> list[list[float]]:
    """Ratios to GEMM over hidden sizes (rows) and tokens (columns)."""
    point = replace(point, precision=precision)
    return [[predict(replace(resized(point, d), tokens=tokens), machine).ratio for tokens in TOKENS] for d in SIZES]


def break_even(ratios: Sequence[float], at: Sequence[float]) -> list[float]:
    """Where ratios along an axis pass 1, in between by their logarithms; empty where they do not.

    Args:
        ratios: to GEMM.
        at: positions on the axis, rising.
    """
    found = []
    for i in range(len(at) - 1):
        below, above = log(ratios[i]), log(ratios[i + 1])
        if (below < 0) != (above < 0):
            part = below / (below - above)
            found.append(exp(log(at[i]) + part * (log(at[i + 1]) - log(at[i]))))
    return found


@dataclass(frozen=True)
class Best:
    """The best lookup against the best GEMM, each in the precision that suits it.

    Attributes:
        ratio: how many times faster the lookup is.
        lookup: its precision.
        gemm: GEMM's.
        binding: what binds the lookup.
    """

    ratio: float
    lookup: str
    gemm: str
    binding: str


def best(point: Point, machine: Machine) -> Best:
    """Both feed-forwards in their fastest precision."""
    found = {precision: predict(replace(point, precision=precision), machine) for precision in TYPES}
    lookup = min(found, key=lambda precision: found[precision].lookup_seconds)
    gemm = min(found, key=lambda precision: found[precision].gemm_seconds)
    ratio = found[gemm].gemm_seconds / found[lookup].lookup_seconds
    return Best(ratio, lookup, gemm, found[lookup].binding)


def any_seconds(ffn: str, options: Mapping[str, Any], point: Point, machine: Machine) -> float:
    """Seconds a call of any feed-forward of the registry.

    Lookups and GEMM by their parts; others by their FLOPs at the rate of torch's products and the parameters that their
    tokens touch, which is coarse.

    Args:
        ffn: its name.
        options: its options.
        point: hidden size, tokens, precision and threads.
        machine: where.

    Raises:
        UserError: options that cannot be.
    """
    resolved: Any = resolve_options(ffn, point.d, dict(options))
    if ffn == "lookup":
        own = point_of(resolved, point.d, point.tokens, point.precision, point.threads)
        return predict(own, machine).lookup_seconds
    shares = attained()
    if ffn == "gemm":
        return sum(gemm_parts(point, machine, shares, resolved.intermediate_size).values())
    cost = build_ffn(ffn, hidden_size=point.d, **options).cost()
    threads = min(point.threads, machine.cores)
    flops = point.tokens * cost.flops / (shares["product_float32"] * 1e9 * machine.arithmetic["float32"].of(threads))
    touched = BYTES["float32"] * min(cost.parameters, point.tokens * cost.parameters_touched)
    read = touched / (shares["product_weights_float32"] * 1e9 * machine.stream_rate(max(touched, 1.0), threads))
    return 1e-6 * shares["gemm_call"] * machine.call_us["gemm"] + flops + read


def table(projected: Mapping[str, Sequence[Projected]], machine: Machine) -> str:
    """All axes, for a terminal."""
    lines = [f"{'':<14}{'':>10}{'us a token':>12}{'GEMM':>10}{'ratio':>8}  binds"]
    for axis, row in projected.items():
        for one in row:
            gemm = 1e6 * one.prediction.gemm_seconds / one.point.tokens
            lines.append(
                f"{axis:<14}{position(axis, one.point):>10}{one.us_a_token:>12.3g}{gemm:>10.3g}"
                f"{one.prediction.ratio:>8.2f}  {one.prediction.binding}"
            )
        if axis != "precision":
            at = [float(position(axis, one.point).replace(",", "")) for one in row]
            crossings = break_even([one.prediction.ratio for one in row], at)
            text = ", ".join(f"{crossing:,.0f}" for crossing in crossings)
            faster = "faster" if row[-1].prediction.ratio > 1 else "slower"
            lines.append(f"{'':<14}breaks even at {text}" if text else f"{'':<14}{faster} than GEMM all along")
    return f"{machine.name}\n" + "\n".join(lines) + "\n"


def position(axis: str, point: Point) -> str:
    """Where a point stands on an axis."""
    values = {"hidden size": point.d, "tokens": point.tokens, "tables": point.tables, "rows a table": point.rows}
    return point.precision if axis == "precision" else f"{values[axis]:,}"
