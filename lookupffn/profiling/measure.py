"""Measure this machine: arithmetic, streams, random rows, latency, the cost of a call."""

from __future__ import annotations

import datetime
import itertools
import logging
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from lookupffn.errors import UserError
from lookupffn.layers import build_ffn
from lookupffn.profiling import passes, system
from lookupffn.profiling.loops import LINE, Buffer, Loops, loops
from lookupffn.profiling.machine import PAGES, TYPES, Curve, Level, Machine, Rate, rounded
from lookupffn.profiling.timing import in_precision, input_type

logger = logging.getLogger(__name__)

ROWS = (64, 256, 1024, 4096)  # bytes
SMALLEST, LARGEST = 16 << 10, 2 << 30
_STEP_TWICE = 64 << 20  # bytes: working sets double up to here and then quadruple
_PREFETCHES = ((4, 1), (8, 2))  # rows ahead, level; the better of them counts
_SECONDS = 100
_UNSETTLED = 0.02  # of the figures


def measure_machine(
    name: str | None = None, *, largest: int = LARGEST, seconds: float = _SECONDS, progress: bool = True
) -> dict[str, Any]:
    """Measures this machine, in about two minutes.

    Args:
        name: what to call it; the processor's model name if None.
        largest: bytes of the largest working set, a power of two from 256 KB.
        seconds: after which figures that do not repeat are left as they are.
        progress: show a progress bar.

    Returns:
        A machine file's content: ``Machine.to_dict`` and, under "about", how it was measured.

    Raises:
        UserError: a size that cannot be, too little memory, or no compiler.
    """
    start = time.monotonic()
    load = system.other_work()
    if load > passes.DISTURBED:
        logger.warning("the machine is busy: other work takes %.0f%% of it; figures will be too low", 100 * load)
    sizes = _sizes(_affordable(largest))
    measured = loops()
    with ExitStack() as stack, system.OtherWork() as work:
        buffers = {pages: stack.enter_context(measured.buffer(sizes[-1], pages == "huge")) for pages in PAGES}
        tasks = _arithmetic(measured) | _memory(measured, buffers, sizes) | _calls(measured)
        with tqdm(total=passes.LEAST * len(tasks), desc="measuring", disable=not progress, file=sys.stderr) as bar:
            found = passes.in_passes(passes.one_each(tasks), seconds=seconds, bar=bar)
    unsettled = [key for key, rates in found.items() if not passes.settled(rates)]
    if work.share > passes.DISTURBED:
        logger.warning(
            "the machine was busy: other work took %.0f%% of it; measure again when nothing else runs", 100 * work.share
        )
    if len(unsettled) > _UNSETTLED * len(found):
        logger.warning(
            "%d of %d figures did not repeat within %.0f%%: other work, perhaps on the same hardware but outside of "
            "this system, disturbed them",
            *(len(unsettled), len(found), 100 * passes.AGREE),
        )
    machine, instructions = _machine(name, measured, found, sizes)
    about = {
        "date": datetime.date.today().isoformat(),
        "processor": system.processor_name(),
        "torch": str(torch.__version__),
        "seconds": round(time.monotonic() - start),
        "load_before": round(load, 3),
        "other_work": round(work.share, 3),
        "unsettled": [" ".join(map(str, key)) for key in unsettled],
        "instructions": instructions,
        "latency_small_pages_ns": [rounded(1 / passes.value(found["latency", "small", size])) for size in _fine(sizes)],
        "counters": system.counters_reason() or _counted(measured),
    }
    return machine.to_dict() | {"about": about}


def _sizes(largest: int) -> list[int]:
    """Working sets from ``SMALLEST`` on."""
    sizes = [SMALLEST]
    while sizes[-1] < largest:
        sizes.append(min(largest, sizes[-1] * (2 if sizes[-1] < _STEP_TWICE else 4)))
    return sizes


def _fine(sizes: list[int]) -> list[int]:
    """Working sets and, where they double, one between: the edges of caches show there."""
    between = [size * 181 // 128 // LINE * LINE for size in sizes[:-1] if size < _STEP_TWICE]
    return sorted({*sizes, *between})


def _affordable(largest: int) -> int:
    if largest < 256 << 10 or largest & (largest - 1):
        raise UserError(f"the largest working set must be a power of two from {256 << 10} bytes, not {largest}")
    free = system.memory_bytes()[1]
    afforded = min(largest, 1 << max(0, (free // 3).bit_length() - 1))  # there are two buffers
    if afforded < 64 << 20 <= largest:
        raise UserError(f"only {free >> 20} MB of memory are free; a profile needs 192 MB at least")
    if afforded < largest:
        logger.warning("working sets end at %d MB: no more memory is free", afforded >> 20)
    return afforded


Tasks = dict[tuple, Callable[[], float]]


def _arithmetic(measured: Loops) -> Tasks:
    tasks: Tasks = {("clock",): lambda: measured.clock(measured.cores)}
    for kind in range(len(measured.kinds())):
        for which, threads in _threads(measured):
            tasks["arithmetic", kind, which] = partial(measured.arithmetic, kind, threads)
    return tasks


def _threads(measured: Loops) -> tuple[tuple[str, int], ...]:
    return ("one", 1), ("all", measured.cores)


def _memory(measured: Loops, buffers: Mapping[str, Buffer], sizes: list[int]) -> Tasks:
    """Streams on huge pages; rows and latencies on both."""
    tasks: Tasks = {}
    for size in sizes:
        for which, threads in _threads(measured):
            tasks["stream", which, size] = partial(measured.stream, buffers["huge"], size, threads)
    for pages, buffer in buffers.items():
        for size in _fine(sizes):
            tasks["latency", pages, size] = _inverse(partial(measured.latency, buffer, size))
        for size, row in itertools.product(sizes, ROWS):
            for which, threads in _threads(measured):
                for way in ((0, 2), *_PREFETCHES):
                    tasks["rows", which, pages, way, row, size] = partial(
                        measured.rows, buffer, size, row, threads, *way
                    )
    return tasks


def _calls(measured: Loops) -> Tasks:
    tasks: Tasks = {("call", "page"): _inverse(measured.page)}
    for name, function in smallest_calls().items():
        tasks["call", name] = _inverse(partial(_median_us, function))
    return tasks


def _inverse(measure: Callable[[], float]) -> Callable[[], float]:
    return lambda: 1 / measure()


def _machine(
    name: str | None, measured: Loops, found: Mapping[tuple, list[float]], sizes: list[int]
) -> tuple[Machine, dict[str, str]]:
    """The machine, and the instruction of each type's arithmetic: the best of those that this build has."""
    best = {key: passes.value(rates) for key, rates in found.items()}
    arithmetic: dict[str, Rate] = {}
    instructions: dict[str, str] = {}
    for kind, (type_, instruction) in enumerate(measured.kinds()):
        rate = Rate(best["arithmetic", kind, "one"], best["arithmetic", kind, "all"])
        if type_ not in arithmetic or rate.all > arithmetic[type_].all:
            arithmetic[type_], instructions[type_] = rate, instruction
    for type_ in TYPES:
        if type_ not in arithmetic:
            arithmetic[type_], instructions[type_] = arithmetic["float32"], f"none, {instructions['float32']}"
    streams = {which: _curve(best, sizes, ("stream", which)) for which in ("one", "all")}
    rows = {}
    for which, pages, row in itertools.product(("one", "all"), PAGES, ROWS):
        plain = _curve(best, sizes, ("rows", which, pages, (0, 2), row))
        ways = [_curve(best, sizes, ("rows", which, pages, way, row)).rates for way in _PREFETCHES]
        rows[which, pages, "plain", row] = plain
        rows[which, pages, "prefetched", row] = Curve(plain.working_sets, tuple(map(max, *ways)))
    fine = _fine(sizes)
    latency = Curve(tuple(fine), tuple(1 / best["latency", "huge", size] for size in fine))
    machine = Machine(
        name=name or system.processor_name(),
        kind="measured",
        cores=measured.cores,
        clock_ghz=best["clock",],
        arithmetic=arithmetic,
        levels=_levels(measured, latency, streams),
        streams=streams,
        rows=rows,
        latency_ns=latency,
        call_us={key[1]: 1 / rate for key, rate in best.items() if key[0] == "call"},
    )
    return machine, instructions


def _curve(best: Mapping[tuple, float], sizes: list[int], key: tuple) -> Curve:
    return Curve(tuple(sizes), tuple(best[*key, size] for size in sizes))


def seen_sizes(stated: list[tuple[str, int, int]], latency: Curve) -> list[int]:
    """Up to which size each cache answers as a cache of its level does, by the curve of latencies.

    The border between two levels is where the latency passes the geometric mean of the two. A level's own latency is
    that well beyond the level before it, at most at half its stated size; the memory's that of the largest working set.

    Args:
        stated: name, bytes and sharing processors, from L1 on.
        latency: nanoseconds by working set.
    """
    sizes = [size for _, size, _ in stated]
    own = [latency.at(min(size / 2, 4 * inner)) for inner, size in zip([sizes[0], *sizes], sizes, strict=False)]
    own.append(latency.rates[-1])
    found = []
    for level in range(len(stated)):
        border = math.sqrt(own[level] * own[level + 1])
        within = latency.working_sets[0]
        for size, ns in zip(latency.working_sets, latency.rates, strict=True):
            if ns > border:
                break
            within = size
        found.append(int(within))
    return found


def _levels(measured: Loops, latency: Curve, streams: dict[str, Curve]) -> tuple[Level, ...]:
    stated = system.stated_caches()
    levels = []
    for (name, size, shared), seen in zip(stated, seen_sizes(stated, latency), strict=True):
        half = min(size, seen) / 2
        instances = max(1, measured.cores // shared)
        rate = Rate(streams["one"].at(half), streams["all"].at(half * instances))
        levels.append(Level(name, size, seen, min(shared, measured.cores), rate))
    total = system.memory_bytes()[0]
    memory = Rate(streams["one"].rates[-1], streams["all"].rates[-1])
    return (*levels, Level("memory", total, total, measured.cores, memory))


def smallest_calls() -> dict[str, Callable[[], Any]]:
    """Calls that do next to nothing: an operator of torch, and feed-forwards by name and precision."""
    x = torch.randn(1, 16)
    functions: dict[str, Callable[[], Any]] = {"operator": lambda: torch.add(x, x)}
    for precision in TYPES:
        options = {"num_tables": 1, "table_size": 2, "num_probes": 1}
        lookup = in_precision(build_ffn("lookup", hidden_size=16, **options).eval(), precision)
        gemm = in_precision(build_ffn("gemm", hidden_size=16, intermediate_size=16).eval(), precision)
        own = x.to(input_type(precision))
        for name, module in (("lookup", lookup), ("gemm", gemm)):
            key = name if precision == "float32" else f"{name}_{precision}"
            functions[key] = partial(module, own)
    return functions


@torch.inference_mode()
def _median_us(function: Callable[[], Any], repeat: int = 200) -> float:
    """Microseconds of a call from Python with one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(10):
            function()
        times = []
        for _ in range(repeat):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return 1e6 * statistics.median(times)


def _counted(measured: Loops, size: int = 64 << 20, row: int = 2048) -> dict[str, float]:
    """Hardware counts by perf of a row read at random: those of many rounds less those of few."""
    few, many = 1, 201
    command = [sys.executable, "-m", "lookupffn.profiling.rows_alone", str(size), str(row)]
    before, after = (system.count([*command, str(rounds)]) for rounds in (few, many))
    rows = (many - few) * measured.rows_a_round(row)
    return {name: round((after[name] - before[name]) / rows, 3) for name in after.keys() & before.keys()}
