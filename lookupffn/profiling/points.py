"""Points of the space of shapes at which predicted and measured time are compared, and how they are measured.

A third of the points is held out: it is written to a file of its own, which nobody looks at while the model of time is
made. Which points those are is decided by a seed before anything is measured.
"""

from __future__ import annotations

import csv
import itertools
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lookupffn.errors import UserError
from lookupffn.layers import build_ffn
from lookupffn.layers.base import FeedForward
from lookupffn.profiling import sampling, system
from lookupffn.profiling.timing import Point, by_turns, in_precision, input_type

logger = logging.getLogger(__name__)

Call = Callable[[Tensor], Tensor]
SEED = 20251125
GEMM_PARTS = ("first product", "activation", "second product")
_MOST_TABLES = 1 << 28  # bytes in float32: many times any third-level cache's share of a core
_MOST_FLOPS = 8e10  # of GEMM in a call: 0.7 s with one thread of Zen 4
_COUNTED_TOKENS = 2048
_DISTURBED = 0.05
_ATTEMPTS = 6
_MORE_INPUTS = 3
_MOST_INPUT_BYTES = 64 << 20


@dataclass(frozen=True)
class Measured:
    """Seconds a call at a point.

    Attributes:
        point: where.
        entropy: bits a code, mean over tables.
        lookup: seconds.
        gemm: seconds.
        parts: seconds of each of sampling.PARTS and of GEMM_PARTS; empty where samples were too few.
    """

    point: Point
    entropy: float
    lookup: float
    gemm: float
    parts: dict[str, float]


def drawn(count: int, threads: Sequence[int], seed: int = SEED) -> tuple[list[Point], list[Point]]:
    """Points drawn from the whole space, each value of each axis about equally often.

    Args:
        count: how many.
        threads: thread counts to draw from.
        seed: of the draw and of the split.

    Returns:
        The points to make a model with (two thirds), and those held out.
    """
    generator = random.Random(seed)
    found: list[Point] = []
    while len(found) < count:
        d = generator.choice([128, 256, 512, 512, 768, 1024, 2048])
        point = Point(
            d=d,
            tables=generator.choice([d // 8, d // 4, d // 4, d // 2]),
            rows=generator.choice([64, 256, 256, 1024, 4096]),
            probes=generator.choice([1, 1, 2, 3, 4]),
            block=generator.choice([block for block in (16, 32, 64) if block <= d // 4]),
            tokens=generator.choice([1, 1, 4, 16, 64, 128, 512, 2048, 8192, 16384]),
            precision=generator.choice(["float32", "float32", "bfloat16", "int8", "int8"]),
            threads=generator.choice(list(threads)),
            offset=generator.choice([0.0, 0.0, 0.0, 1.0]),
        )
        if 4 * point.tables * point.rows * d <= _MOST_TABLES and 16 * d * d * point.tokens <= _MOST_FLOPS:
            found.append(point)
    return found[: count - count // 3], found[count - count // 3 :]


def built(point: Point) -> tuple[Call, Call, float]:
    """The lookup and GEMM of a point, in its precision, with new weights, and bits of entropy a code."""
    lookup = _lookup(point)
    gemm = build_ffn("gemm", hidden_size=point.d).eval()
    with torch.inference_mode():
        entropy = _entropy(lookup, point)
    return in_precision(lookup, point.precision), in_precision(gemm, point.precision), entropy


def _lookup(point: Point) -> FeedForward:
    torch.manual_seed(0)
    shape = {"num_tables": point.tables, "table_size": point.rows, "num_probes": point.probes}
    projection = {"block_size": point.block} if point.block else {"projection": "dense"}
    return build_ffn("lookup", hidden_size=point.d, **shape, **projection).eval()


def inputs_of(point: Point) -> list[Tensor]:
    """What calls get in turn: new tokens at every call, so that their rows do not wait in the cache.

    All inputs together read each row of a table about four times.
    """
    common = point.offset * torch.randn(point.d)
    tokens = min(4 * point.rows // point.probes, _MOST_INPUT_BYTES // (4 * point.d))
    count = max(_calls_of(point) + _MORE_INPUTS, tokens // point.tokens)
    made = [torch.randn(point.tokens, point.d) + common for _ in range(count)]
    return [x.to(input_type(point.precision)) for x in made]


def _calls_of(point: Point) -> int:
    return max(1, min(64, 512 // point.tokens))


def measure(points: Sequence[Point], *, seconds: float = 1.0, progress: Callable[[], Any] = int) -> list[Measured]:
    """Times lookup and GEMM at some points, by part.

    Args:
        points: where.
        seconds: how long to go on at each.
        progress: called after each.

    Raises:
        UserError: there is no compiler or no addr2line.
    """
    timed = []
    for point in points:
        timed.append(_undisturbed(point, seconds, True))
        progress()
    shares = sampling.part_shares([samples for _, samples in timed])
    return [
        replace(one, parts=one.parts | {part: share * one.lookup for part, share in found.items()})
        for (one, _), found in zip(timed, shares, strict=True)
    ]


def measure_whole(point: Point, *, seconds: float = 1.0) -> Measured:
    """Times lookup and GEMM at a point, without parts."""
    return _undisturbed(point, seconds, False)[0]


def measure_lookup(point: Point, *, seconds: float = 0.3) -> float:
    """Seconds a call of a lookup, without GEMM."""
    threads = torch.get_num_threads()
    torch.set_num_threads(point.threads)
    try:
        lookup = in_precision(_lookup(point), point.precision)
        with torch.inference_mode():
            inputs, calls, turn = inputs_of(point), _calls_of(point), itertools.count()
            found = by_turns({"": lambda: _calls(lookup, _some(inputs, calls, next(turn)))}, seconds=seconds, least=4)
    finally:
        torch.set_num_threads(threads)
    return found[""] / calls


def _undisturbed(point: Point, seconds: float, parts: bool) -> tuple[Measured, Counter[int]]:
    """The attempt that other work disturbed least, as soon as one is hardly disturbed."""
    tried: list[Any] = []
    while len(tried) < _ATTEMPTS:
        with system.OtherWork() as work:
            found = _measure(point, seconds, parts)
        tried.append((work.share, found))
        if work.share < _DISTURBED:
            break
        time.sleep(seconds)
    share, found = min(tried, key=lambda one: one[0])
    if share >= _DISTURBED:
        logger.warning("%s: other work takes %.0f%% of the machine", point, 100 * share)
    return found


def _measure(point: Point, seconds: float, parts: bool) -> tuple[Measured, Counter[int]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(point.threads)
    try:
        # outside of inference mode: weights made in it are folded at every call
        lookup, gemm, entropy = built(point)
        with torch.inference_mode():
            found, steps, samples = _timed(lookup, gemm, inputs_of(point), _calls_of(point), seconds, parts)
    finally:
        torch.set_num_threads(threads)
    each = {name: value / _calls_of(point) for name, value in found.items()}
    by_part = {part: each["gemm"] * step / sum(steps) for part, step in zip(GEMM_PARTS, steps, strict=True) if parts}
    return Measured(point, entropy, each["lookup"], each["gemm"], by_part), samples


def _timed(
    lookup: Call, gemm: Call, inputs: Sequence[Tensor], calls: int, seconds: float, parts: bool
) -> tuple[dict[str, float], list[float], Counter[int]]:
    steps = [0.0] * 3
    turn = itertools.count()

    def some() -> list[Tensor]:
        return _some(inputs, calls, next(turn))

    functions = {
        "lookup": lambda: _lookup_calls(lookup, some(), parts),
        "gemm": lambda: _calls(gemm, some()),
    }
    if not parts:
        return by_turns(functions, seconds=seconds, least=4), steps, Counter()
    functions["steps"] = lambda: _gemm_steps(gemm, some(), steps)
    for _ in range(4):  # folds weights, moves tables to huge pages
        _calls(lookup, inputs[:1])
    with sampling.sampling():
        found = by_turns(functions, seconds=seconds, least=4)
        return found, steps, sampling.samples()


def _some(inputs: Sequence[Tensor], calls: int, turn: int) -> list[Tensor]:
    """The inputs of a turn, one after another and round again."""
    return [inputs[(turn * calls + i) % len(inputs)] for i in range(calls)]


def _calls(module: Call, inputs: Sequence[Tensor]) -> None:
    for x in inputs:
        module(x)


def _lookup_calls(module: Call, inputs: Sequence[Tensor], sampled: bool) -> None:
    if not sampled:
        return _calls(module, inputs)
    with sampling.kept():
        _calls(module, inputs)


def _gemm_steps(module: Any, inputs: Sequence[Tensor], seconds: list[float]) -> None:
    for x in inputs:
        times = [time.perf_counter()]
        for step in (module.intermediate, module.activation, module.output):
            x = step(x)
            times.append(time.perf_counter())
        for i, (begin, end) in enumerate(itertools.pairwise(times)):
            seconds[i] += end - begin


def _entropy(lookup: Any, point: Point) -> float:
    point = replace(point, precision="float32", tokens=_COUNTED_TOKENS)
    lookup.collect_statistics(True)
    lookup(inputs_of(point)[0])
    entropy = lookup.statistics()["code_entropy_bits"]
    lookup.collect_statistics(False)
    return entropy


_FIELDS = [field.name for field in fields(Point)]
_COLUMNS = [*_FIELDS, "entropy", "lookup_us", "gemm_us"]


def write_points(path: Path, measured: Iterable[Measured]) -> None:
    """A CSV file of microseconds a call, a line a point."""
    part_columns = [f"{part}_us" for part in (*sampling.PARTS, *GEMM_PARTS)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*_COLUMNS, *part_columns], lineterminator="\n")
        writer.writeheader()
        for one in measured:
            row = asdict(one.point) | {
                "entropy": round(one.entropy, 3),
                "lookup_us": f"{1e6 * one.lookup:.4g}",
                "gemm_us": f"{1e6 * one.gemm:.4g}",
            }
            writer.writerow(row | {f"{part}_us": f"{1e6 * seconds:.4g}" for part, seconds in one.parts.items()})


def read_points(path: Path) -> list[Measured]:
    """The points of a file that ``write_points`` wrote.

    Raises:
        UserError: it cannot be read.
    """
    found = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                types = {"precision": str, "offset": float}
                point = Point(**{name: types.get(name, int)(row[name]) for name in _FIELDS})
                parts = {
                    part: 1e-6 * float(row[f"{part}_us"])
                    for part in (*sampling.PARTS, *GEMM_PARTS)
                    if row.get(f"{part}_us")
                }
                lookup, gemm = (1e-6 * float(row[f"{name}_us"]) for name in ("lookup", "gemm"))
                found.append(Measured(point, float(row["entropy"]), lookup, gemm, parts))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a file of measured points ({error}): measure them again") from None
    return found
