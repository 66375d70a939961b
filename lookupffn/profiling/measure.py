"""Measure this machine: arithmetic, streams, random rows, latency, the cost of a call."""

from __future__ import annotations

import datetime
import logging
import math
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from lookupffn.errors import UserError
from lookupffn.layers import build_ffn
from lookupffn.profiling import system
from lookupffn.profiling.loops import LINE, Loops, loops
from lookupffn.profiling.machine import ACCESSES, PAGES, TYPES, Curve, Level, Machine, Rate
from lookupffn.profiling.timing import in_precision, input_type

logger = logging.getLogger(__name__)

ROWS = (64, 128, 256, 512, 1024, 2048, 4096)  # bytes
SMALLEST, LARGEST = 16 << 10, 2 << 30
_PREFETCHES = ((4, 1), (8, 2))  # rows ahead, level; the better of them counts
_BUSY = 0.05  # of all processors' time
_BUSY_MEASUREMENTS = 0.02


def measure_machine(name: str | None = None, *, largest: int = LARGEST, progress: bool = True) -> dict[str, Any]:
    """Measures this machine, in about two minutes.

    Args:
        name: what to call it; the processor's model name if None.
        largest: bytes of the largest working set, a power of two from 256 KB.
        progress: show a progress bar.

    Returns:
        A machine file's content: ``Machine.to_dict`` and, under "about", how it was measured.

    Raises:
        UserError: a size that cannot be, too little memory, or no compiler.
    """
    start = time.monotonic()
    load = system.other_work()
    if load > _BUSY:
        logger.warning("the machine is busy: other work takes %.0f%% of it; figures will be too low", 100 * load)
    largest = _affordable(largest)
    measured = loops()
    measured.measurements = measured.busy = 0
    sizes = [1 << power for power in range(SMALLEST.bit_length() - 1, largest.bit_length())]
    with tqdm(total=_steps(measured, sizes), desc="measuring", disable=not progress, file=sys.stderr) as bar:
        arithmetic, instructions = _arithmetic(measured, bar.update)
        clock = measured.clock(measured.cores)
        rows, streams, latency = dict[Any, Any](), {}, {}
        for pages in PAGES:
            with measured.buffer(largest, pages == "huge") as buffer:
                bar.set_postfix_str(f"{pages} pages")
                if pages == "huge":
                    for which, threads in (("one", 1), ("all", measured.cores)):
                        rates = _each(sizes, bar, lambda size, threads=threads: measured.stream(buffer, size, threads))  # type: ignore[misc]
                        streams[which] = Curve(tuple(sizes), rates)
                rows |= _rows(measured, buffer, pages, sizes, bar)
                fine = [n for power in sizes for n in (power, power * 181 // 128 // LINE * LINE) if n <= largest]
                latency[pages] = Curve(tuple(fine), _each(fine, bar, lambda size: measured.latency(buffer, size)))
        calls = call_costs() | {"page": measured.page()}
    machine = Machine(
        name=name or system.processor_name(),
        kind="measured",
        cores=measured.cores,
        clock_ghz=clock,
        arithmetic=arithmetic,
        levels=_levels(measured, latency["huge"], streams),
        streams=streams,
        rows=rows,
        latency_ns=latency["huge"],
        call_us=calls,
    )
    disturbed = measured.busy / measured.measurements
    if disturbed > _BUSY_MEASUREMENTS:
        logger.warning(
            "the machine was busy during %.0f%% of the measurements: measure again when nothing else runs",
            100 * disturbed,
        )
    about = {
        "date": datetime.date.today().isoformat(),
        "processor": system.processor_name(),
        "torch": str(torch.__version__),
        "seconds": round(time.monotonic() - start),
        "load_before": round(load, 3),
        "disturbed": round(disturbed, 3),
        "instructions": instructions,
        "latency_small_pages_ns": [round(ns, 1) for ns in latency["small"].rates],
        "counters": system.counters_reason() or _counted(),
    }
    return machine.to_dict() | {"about": about}


def _affordable(largest: int) -> int:
    if largest < 256 << 10 or largest & (largest - 1):
        raise UserError(f"the largest working set must be a power of two from {256 << 10} bytes, not {largest}")
    free = system.memory_bytes()[1]
    afforded = min(largest, 1 << max(0, (free // 2).bit_length() - 1))
    if afforded < 64 << 20 <= largest:
        raise UserError(f"only {free >> 20} MB of memory are free; a profile needs 128 MB at least")
    if afforded < largest:
        logger.warning("working sets end at %d MB: no more memory is free", afforded >> 20)
    return afforded


def _steps(measured: Loops, sizes: list[int]) -> int:
    rows = len(PAGES) * len(ACCESSES) * len(ROWS) * len(sizes) * 2
    return 2 * len(measured.kinds()) + 2 * len(sizes) + rows + len(PAGES) * (2 * len(sizes) - 1)


def _each(sizes: list[int], bar: tqdm, measure: Callable[[int], float]) -> tuple[float, ...]:
    rates = []
    for size in sizes:
        rates.append(measure(size))
        bar.update()
    return tuple(rates)


def _arithmetic(measured: Loops, advance: Callable[[], Any]) -> tuple[dict[str, Rate], dict[str, str]]:
    """The best instruction of each type; a type without one is computed in float32."""
    rates: dict[str, Rate] = {}
    instructions: dict[str, str] = {}
    for kind, (name, instruction) in enumerate(measured.kinds()):
        rate = Rate(measured.arithmetic(kind, 1), measured.arithmetic(kind, measured.cores))
        advance()
        advance()
        if name not in rates or rate.all > rates[name].all:
            rates[name], instructions[name] = rate, instruction
    for name in TYPES:
        if name not in rates:
            rates[name], instructions[name] = rates["float32"], f"none, {instructions['float32']}"
    return rates, instructions


def _rows(measured: Loops, buffer: Any, pages: str, sizes: list[int], bar: tqdm) -> dict[tuple, Curve]:
    found = {}
    for which, threads in (("one", 1), ("all", measured.cores)):
        for row in ROWS:

            def plain(size: int, row: int = row, threads: int = threads) -> float:
                return measured.rows(buffer, size, row, threads, 0)

            def prefetched(size: int, row: int = row, threads: int = threads) -> float:
                return max(measured.rows(buffer, size, row, threads, ahead, level) for ahead, level in _PREFETCHES)

            for access, measure in zip(ACCESSES, (plain, prefetched), strict=True):
                found[which, pages, access, row] = Curve(tuple(sizes), _each(sizes, bar, measure))
    return found


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


@torch.inference_mode()
def call_costs(repeat: int = 200) -> dict[str, float]:
    """Microseconds of the smallest calls from Python, one thread: nearly all of it is the way to the kernel.

    Returns:
        Medians of an operator of torch, and of the smallest feed-forwards by name (and precision, but for float32).
    """
    x = torch.randn(1, 16)
    functions: dict[str, Callable[[], Any]] = {"operator": lambda: torch.add(x, x)}
    for precision in TYPES:
        options = {"num_tables": 1, "table_size": 2, "num_probes": 1}
        with torch.inference_mode(False):
            lookup = in_precision(build_ffn("lookup", hidden_size=16, **options).eval(), precision)
            gemm = in_precision(build_ffn("gemm", hidden_size=16, intermediate_size=16).eval(), precision)
        own = x.to(input_type(precision))
        for name, module in (("lookup", lookup), ("gemm", gemm)):
            key = name if precision == "float32" else f"{name}_{precision}"
            functions[key] = partial(module, own)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {name: _median_us(function, repeat) for name, function in functions.items()}
    finally:
        torch.set_num_threads(threads)


def _median_us(function: Callable[[], Any], repeat: int) -> float:
    for _ in range(10):
        function()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times)


def _counted() -> dict[str, float]:
    """Hardware counts a row of 2 KB read at random out of 64 MB, by perf: with reads less without."""
    command = [sys.executable, "-m", "lookupffn.profiling.rows_alone", str(64 << 20), "2048"]
    rows = 200_000
    with_reads, without = system.count([*command, str(rows)]), system.count([*command, "0"])
    return {name: round((with_reads[name] - without.get(name, 0)) / rows, 3) for name in with_reads}
