"""What each way to do a lookup is worth on this machine, measured side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from lookupffn.layers import build_ffn
from lookupffn.layers.base import FeedForward
from lookupffn.profiling import passes
from lookupffn.profiling.loops import Buffer, Loops, Way, loops
from lookupffn.profiling.timing import BYTES, by_turns

TABLES, ROWS, COLUMNS = 128, 256, 512
_TOKENS = 256
_LAYERS, _LAYER_ROWS = 4, 64
_SECONDS = 45  # of gathers; each whole layer takes its own three seconds


@dataclass(frozen=True)
class Result:
    """One way of a question.

    Attributes:
        question: what is asked.
        way: the answer measured.
        us_a_token: microseconds.
        gbs: 1e9 bytes of rows a second; None where other work is in the time.
    """

    question: str
    way: str
    us_a_token: float
    gbs: float | None = None


class _Gathers:
    """Gathers of one layer at d 512, T 128, S 256: tables of 64 MB in float32. Methods add what is to be measured."""

    def __init__(self, measured: Loops, huge: Buffer, small: Buffer) -> None:
        self.measured, self.huge, self.small = measured, huge, small
        self.random = np.random.default_rng(1)
        self.best = Way(threads=measured.cores)
        self.rates: dict[tuple[str, str], Callable[[], float]] = {}  # tokens a microsecond
        self.row_bytes: dict[tuple[str, str], float] = {}  # read a token

    def add(
        self,
        question: str,
        name: str,
        way: Way,
        tokens: int = _TOKENS,
        *,
        small: bool = False,
        layers: int = 1,
        tables: int | None = None,
        rows: int = ROWS,
    ) -> None:
        """One way of a question; ``layers`` of them with the same tables one after another."""
        tables = TABLES if tables is None else tables
        rounds = self.measured.warm + max(8, min(48, 4096 // tokens))
        codes = self.random.integers(0, rows, (rounds, tables, tokens), dtype=np.int32)
        measure = partial(self.measured.gather, self.small if small else self.huge, codes, way, rows, COLUMNS)
        self.rates[question, name] = lambda: 1e-6 * tokens / (layers * measure())
        self.row_bytes[question, name] = layers * tables * COLUMNS * way.element

    def results(self) -> list[Result]:
        """All of them, measured in turn again and again."""
        found = passes.in_passes(passes.one_each(self.rates), seconds=_SECONDS)
        each = {key: 1 / passes.value(rates) for key, rates in found.items()}
        return [Result(*key, us, self.row_bytes[key] / us / 1e3) for key, us in each.items()]


def measure_strategies(progress: Callable[[], object] = int) -> list[Result]:
    """All questions, in about two minutes.

    Args:
        progress: called after each part.

    Raises:
        UserError: no compiler or too little memory.
    """
    measured = loops()
    size = TABLES * ROWS * COLUMNS * 4
    with measured.buffer(size, True) as huge, measured.buffer(size, False) as small:
        gathers = _Gathers(measured, huge, small)
        for question in (_orders, _slices, _prefetching, _pages, _types, _sharing_out, _batches, _layers):
            question(gathers)
        results = gathers.results()
    progress()
    results += _precisions()
    progress()
    return results


def _orders(g: _Gathers) -> None:
    for tokens in (16, 256, 2048):
        for order in ("table by table", "token by token"):
            g.add(f"order, {tokens:,} tokens", order, replace(g.best, order=order), tokens)


def _slices(g: _Gathers) -> None:
    """Threads share out the columns of slices, as in the kernels."""
    for tokens in (128, 512, 2048, 8192):
        for name, way in (("whole rows", g.best), ("in slices", replace(g.best, order="in slices", by_columns=True))):
            g.add(f"rows whole or in slices, {tokens:,} tokens", name, way, tokens)


def _prefetching(g: _Gathers) -> None:
    g.add("prefetching", "none", replace(g.best, ahead=0))
    for level in (1, 2):
        for ahead in (1, 2, 4, 8, 16):
            g.add("prefetching", f"{ahead} rows ahead, L{level}", replace(g.best, ahead=ahead, level=level))


def _pages(g: _Gathers) -> None:
    for name in ("huge", "small"):
        g.add("pages", name, g.best, small=name == "small")


def _types(g: _Gathers) -> None:
    for tokens in (16, 2048):
        for name, element in BYTES.items():
            g.add(f"type of tables, {tokens:,} tokens", name, replace(g.best, element=element), tokens)


def _sharing_out(g: _Gathers) -> None:
    for tokens in (2, 256):
        question = f"threads, {tokens} tokens"
        g.add(question, "one", replace(g.best, threads=1), tokens)
        if g.measured.cores > 1:
            g.add(question, "by tokens", g.best, tokens)
            g.add(question, "by columns", replace(g.best, by_columns=True), tokens)


def _batches(g: _Gathers) -> None:
    for tokens in (1, 8, 64, 512, 4096):
        g.add("batch, one thread", f"{tokens:,} tokens", replace(g.best, threads=1), tokens)


def _layers(g: _Gathers) -> None:
    """Four layers with tables of their own (64 MB in all at S 64), or with the same ones (16 MB)."""
    question = f"tables of {_LAYERS} layers, S {_LAYER_ROWS}"
    g.add(question, "each its own", g.best, tables=_LAYERS * TABLES, rows=_LAYER_ROWS)
    g.add(question, "one set shared", g.best, layers=_LAYERS, rows=_LAYER_ROWS)


def _lookup() -> FeedForward:
    options = {"num_tables": TABLES, "table_size": ROWS, "num_probes": 1, "block_size": 32}
    return build_ffn("lookup", hidden_size=COLUMNS, **options).eval()


def _precisions() -> list[Result]:
    """The whole layer: the same weights in each precision, int8 by both ways to have it."""
    quantized = _lookup()
    quantized.quantize_tables()
    half = _lookup().bfloat16()
    modules = {
        "float32": _lookup(),
        "bfloat16": half,
        "int8 tables, float32 arithmetic (quantize_tables)": quantized,
        'int8 throughout (prepared("int8"))': _lookup().prepared("int8"),
    }
    found = []
    for tokens in (1, 128, 2048):
        x = [torch.randn(tokens, COLUMNS) for _ in range(max(4, 1024 // tokens))]
        own = {torch.float32: x, torch.bfloat16: [one.bfloat16() for one in x]}
        ways = {}
        for name, module in modules.items():
            inputs = own[torch.bfloat16 if module is half else torch.float32]
            ways[name] = partial(_each, module, inputs)
        text = "1 token" if tokens == 1 else f"{tokens:,} tokens"
        found += _by_turns(f"the whole layer, {text}", ways, len(x) * tokens)
    return found


def _each(module: Callable[[torch.Tensor], torch.Tensor], inputs: Sequence[torch.Tensor]) -> None:
    for x in inputs:
        module(x)


def _by_turns(question: str, ways: Mapping[str, Callable[[], None]], tokens: int) -> list[Result]:
    with torch.inference_mode():
        for run in ways.values():
            run()
            run()
        seconds = by_turns(ways, seconds=3)
    return [Result(question, name, 1e6 * value / tokens) for name, value in seconds.items()]


def markdown(results: Sequence[Result]) -> str:
    """A table with, for each question, each way's time and how it compares with the first."""
    lines = ["| question | way | us a token | GB/s | times the first's speed |", "| --- | --- | ---: | ---: | ---: |"]
    first: dict[str, float] = {}
    for one in results:
        base = first.setdefault(one.question, one.us_a_token)
        gbs = "" if one.gbs is None else f"{one.gbs:.3g}"
        lines.append(f"| {one.question} | {one.way} | {one.us_a_token:.3g} | {gbs} | {base / one.us_a_token:.2f} |")
    return "\n".join(lines) + "\n"
