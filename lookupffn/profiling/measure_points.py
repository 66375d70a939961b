"""How long the lookup and GEMM of a point take on the machine at hand, whole and by part."""

from __future__ import annotations

import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lookupffn.layers import build_ffn
from lookupffn.layers.base import FeedForward
from lookupffn.profiling import passes, sampling
from lookupffn.profiling.points import GEMM_PARTS, Measured
from lookupffn.profiling.timing import Point, by_turns, in_precision, input_type

logger = logging.getLogger(__name__)

_PASSES = 3
_MOST_TIME = 3  # times that of the passes, while some figures do not agree
_COUNTED_TOKENS = 2048
_MORE_INPUTS = 3
_MOST_INPUT_BYTES = 64 << 20


def measure(
    points: Sequence[Point], *, seconds: float = 1.0, parts: bool = True, progress: Callable[[], Any] = int
) -> list[Measured]:
    """Times lookup and GEMM at some points, in passes over all of them; more of those that do not repeat.

    Args:
        points: where; all their weights are in memory together.
        seconds: how long to go on at each.
        parts: also say where the time goes.
        progress: called after each is built.

    Raises:
        UserError: other work disturbed too much of it, there is no compiler or, for parts, no addr2line.
    """
    benches = []
    for point in points:
        benches.append(Bench(point))
        progress()
    best = _in_passes(benches, seconds, parts)
    shares = sampling.part_shares([bench.samples for bench in benches]) if parts else [{} for _ in benches]
    return [bench.measured(best, found) for bench, found in zip(benches, shares, strict=True)]


def measure_lookups(points: Sequence[Point], *, seconds: float = 0.3) -> list[float]:
    """Seconds a call of lookups, without GEMM, in passes over all of them.

    Args:
        points: which; all their weights are in memory together.
        seconds: how long to go on at each.

    Raises:
        UserError: other work disturbed too much of it, or there is no compiler.
    """
    benches = [Bench(point, gemm=False) for point in points]
    best = _in_passes(benches, seconds, False)
    return [best[bench, "lookup"] for bench in benches]


def _in_passes(benches: Sequence[Bench], seconds: float, parts: bool) -> dict[tuple[Bench, str], float]:
    """Seconds a call of the lookup, and of GEMM, of each."""
    found = passes.in_passes(
        [partial(bench.rates, seconds / _PASSES, parts) for bench in benches],
        seconds=_MOST_TIME * seconds * len(benches),
        least=_PASSES,
        strict=seconds > 0,
    )
    unsettled = sum(not passes.settled(rates) for rates in found.values())
    if unsettled and seconds:
        logger.warning("%d of %d times did not repeat within %.0f%%", unsettled, len(found), 100 * passes.AGREE)
    return {key: 1 / passes.value(rates) for key, rates in found.items()}


class Bench:
    """A point's lookup and GEMM with new weights and inputs, ready to be timed.

    Attributes:
        samples: of the lookup's program counter, all passes.
    """

    def __init__(self, point: Point, *, gemm: bool = True) -> None:
        self.point = point
        self.samples: Counter[int] = Counter()
        self._steps = [0.0] * len(GEMM_PARTS)
        self._turn = itertools.count()
        with _threads(point.threads):
            # outside of inference mode: weights made in it are folded at every call
            lookup = _lookup(point)
            with torch.inference_mode():
                self.entropy = _entropy(lookup, point) if gemm else 0.0
                self._inputs = inputs_of(point)
            self._lookup = in_precision(lookup, point.precision)
            self._gemm: Any = None
            if gemm:
                self._gemm = in_precision(build_ffn("gemm", hidden_size=point.d).eval(), point.precision)
            with torch.inference_mode():
                for _ in range(4):  # folds weights, moves tables to huge pages
                    self._lookup(self._inputs[0])

    def rates(self, seconds: float, parts: bool) -> dict[tuple[Bench, str], float]:
        """Calls a second of the lookup and GEMM, by turns."""
        calls = _calls_of(self.point)
        with _threads(self.point.threads), torch.inference_mode():
            functions: dict[str, Callable[[], Any]] = {"lookup": lambda: self._lookup_calls(parts)}
            if self._gemm is not None:
                functions["gemm"] = lambda: [self._gemm(x) for x in self._next()]
            if not parts:
                found = by_turns(functions, seconds=seconds, least=4)
            else:
                functions["steps"] = self._gemm_steps
                self._lookup(self._inputs[0])  # starts all threads
                with sampling.sampling():
                    found = by_turns(functions, seconds=seconds, least=4)
                    self.samples += sampling.samples()
        return {(self, name): calls / found[name] for name in functions if name != "steps"}

    def measured(self, best: Mapping[tuple[Bench, str], float], shares: Mapping[str, float]) -> Measured:
        """What was found, the times shared out among the parts.

        Args:
            best: seconds a call, of "lookup" and "gemm".
            shares: of the lookup's parts.
        """
        lookup, gemm, total = best[self, "lookup"], best[self, "gemm"], sum(self._steps)
        parts = {part: share * lookup for part, share in shares.items()}
        if total:
            parts |= {part: gemm * step / total for part, step in zip(GEMM_PARTS, self._steps, strict=True)}
        return Measured(self.point, self.entropy, lookup, gemm, parts)

    def _next(self) -> list[Tensor]:
        """The inputs of a turn, one after another and round again."""
        calls, turn = _calls_of(self.point), next(self._turn)
        return [self._inputs[(turn * calls + i) % len(self._inputs)] for i in range(calls)]

    def _lookup_calls(self, sampled: bool) -> None:
        inputs = self._next()
        if not sampled:
            for x in inputs:
                self._lookup(x)
            return
        with sampling.kept():
            for x in inputs:
                self._lookup(x)

    def _gemm_steps(self) -> None:
        for x in self._next():
            times = [time.perf_counter()]
            for step in (self._gemm.intermediate, self._gemm.activation, self._gemm.output):
                x = step(x)
                times.append(time.perf_counter())
            for i, (begin, end) in enumerate(itertools.pairwise(times)):
                self._steps[i] += end - begin


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


def _lookup(point: Point) -> FeedForward:
    torch.manual_seed(0)
    shape = {"num_tables": point.tables, "table_size": point.rows, "num_probes": point.probes}
    projection = {"block_size": point.block} if point.block else {"projection": "dense"}
    return build_ffn("lookup", hidden_size=point.d, **shape, **projection).eval()


def _entropy(lookup: Any, point: Point) -> float:
    """Bits a code."""
    point = replace(point, precision="float32", tokens=_COUNTED_TOKENS)
    lookup.collect_statistics(True)
    lookup(inputs_of(point)[0])
    entropy = lookup.statistics()["code_entropy_bits"]
    lookup.collect_statistics(False)
    return entropy


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
