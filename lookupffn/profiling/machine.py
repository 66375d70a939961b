"""A machine as the time model sees it: arithmetic rates, and what memory gives by working set, row size and threads.

A machine file is YAML, written by scripts/profile_hardware.py or, for machines that are not at hand, derived from a
data sheet (see datasheet.py). Rates are in units of 1e9 a second: operations (a multiply and an add are two) or bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lookupffn.errors import UserError
from lookupffn.storage import check_ordinary

TYPES = ("float32", "bfloat16", "int8")
PAGES = ("small", "huge")
ACCESSES = ("plain", "prefetched")
_LARGEST = 1e9  # no machine computes or moves 1e18 a second
_LEAST_ROW, _MOST_ROW = 64, 4096


@dataclass(frozen=True)
class Rate:
    """1e9 a second of one thread, and of all together."""

    one: float
    all: float

    def of(self, threads: int) -> float:
        """The rate of some threads: in proportion until all of them are reached."""
        return min(self.one * threads, self.all) if threads > 1 else self.one


@dataclass(frozen=True)
class Level:
    """A cache level or the memory.

    Attributes:
        name: "L1", "L2", ..., "memory".
        bytes: as the system states it, of one instance.
        seen_bytes: up to where the curves show its speed; a virtual machine may get less than is stated.
        shared_by: threads that share an instance.
        read: streaming reads.
    """

    name: str
    bytes: float
    seen_bytes: float
    shared_by: int
    read: Rate


@dataclass(frozen=True)
class Curve:
    """Rates over working sets, [bytes]; between them linear in logarithms."""

    working_sets: tuple[float, ...]
    rates: tuple[float, ...]

    def at(self, size: float) -> float:
        """The rate of a working set."""
        return float(np.exp(np.interp(math.log(max(size, 1)), np.log(self.working_sets), np.log(self.rates))))


@dataclass(frozen=True)
class Machine:
    """What decides how long a feed-forward takes.

    Attributes:
        name: the processor, in words.
        kind: "measured", "datasheet" or "hypothetical".
        cores: threads that "all" means.
        clock_ghz: under arithmetic load.
        arithmetic: operations by type.
        levels: from L1 to memory.
        streams: reading in order, "one" and "all" threads, by the bytes that all threads together pass over.
        rows: reading rows at random, by (threads "one" or "all", pages, access, row bytes), all threads from one table.
        latency_ns: from an address to its value, on huge pages.
        call_us: what a call from Python costs, by what is called; and "page", a new page of memory.
        gather_in_memory: bytes a second (1e9) at which the memory itself adds rows; 0 for memory that does not.
        sources: where each figure comes from, for machines that were not measured.
    """

    name: str
    kind: str
    cores: int
    clock_ghz: float
    arithmetic: Mapping[str, Rate]
    levels: tuple[Level, ...]
    streams: Mapping[str, Curve]
    rows: Mapping[tuple[str, str, str, int], Curve]
    latency_ns: Curve
    call_us: Mapping[str, float]
    gather_in_memory: float = 0.0
    sources: Mapping[str, str] = field(default_factory=dict)

    def stream_rate(self, size: float, threads: int) -> float:
        """1e9 bytes a second of reading ``size`` bytes in order, shared out among the threads."""
        return self._by_threads(self.streams["one"], self.streams["all"], size / threads, size, threads)

    def row_rate(self, row: float, size: float, threads: int, pages: str = "huge", access: str = "prefetched") -> float:
        """1e9 bytes a second of reading rows at random.

        Args:
            row: bytes a row.
            size: bytes of the table that all threads read.
            threads: how many.
            pages: "small" or "huge".
            access: "plain" or "prefetched".
        """
        known = sorted({key[3] for key in self.rows})
        row = min(max(row, known[0]), known[-1])
        above = next(i for i, size_ in enumerate(known) if size_ >= row)
        below = above if known[above] == row else above - 1
        values = []
        for size_ in (known[below], known[above]):
            one, every = (self.rows[which, pages, access, size_] for which in ("one", "all"))
            values.append(self._by_threads(one, every, size, size, threads))
        if below == above:
            return values[0]
        part = math.log(row / known[below]) / math.log(known[above] / known[below])
        return values[0] ** (1 - part) * values[1] ** part

    def _by_threads(self, one: Curve, every: Curve, size: float, total: float, threads: int) -> float:
        if threads <= 1:
            return one.at(size)
        if threads >= self.cores:
            return every.at(total)
        return min(threads * one.at(size), every.at(total))

    def to_dict(self) -> dict[str, Any]:
        """What a machine file holds."""
        rows: dict[str, Any] = {}
        for (which, pages, access, row), curve in sorted(self.rows.items(), key=lambda item: item[0]):
            by_row = rows.setdefault(which, {}).setdefault(pages, {}).setdefault(access, {})
            by_row[row] = [rounded(rate) for rate in curve.rates]
        some = next(iter(self.rows.values()))
        return {
            "name": self.name,
            "kind": self.kind,
            "cores": self.cores,
            "clock_ghz": rounded(self.clock_ghz),
            "arithmetic": {name: _rate_dict(rate) for name, rate in self.arithmetic.items()},
            "levels": [
                {
                    "name": level.name,
                    "bytes": int(level.bytes),
                    "seen_bytes": int(level.seen_bytes),
                    "shared_by": level.shared_by,
                    "read": _rate_dict(level.read),
                }
                for level in self.levels
            ],
            "streams": {
                "working_sets": [int(size) for size in self.streams["one"].working_sets],
                **{which: [rounded(rate) for rate in curve.rates] for which, curve in self.streams.items()},
            },
            "rows": {"working_sets": [int(size) for size in some.working_sets], **rows},
            "latency_ns": {
                "working_sets": [int(size) for size in self.latency_ns.working_sets],
                "ns": [rounded(ns) for ns in self.latency_ns.rates],
            },
            "call_us": {name: rounded(us) for name, us in self.call_us.items()},
        } | ({"gather_in_memory": rounded(self.gather_in_memory)} if self.gather_in_memory else {})


def rounded(value: float) -> float:
    """Three significant digits, four where the first is 1: no measurement here is known better."""
    digits = 4 if f"{value:e}".startswith("1") else 3
    return float(f"{value:.{digits}g}")


def _rate_dict(rate: Rate) -> dict[str, float]:
    return {"one": rounded(rate.one), "all": rounded(rate.all)}


def machine_from(values: Mapping[str, Any], source: str) -> Machine:
    """A machine out of a machine file's content.

    Args:
        values: as ``Machine.to_dict`` gives them.
        source: what to call it in messages.

    Raises:
        UserError: something is missing, or is nothing that a machine can be.
    """
    read = _Reader(values, source)
    levels = tuple(
        Level(
            str(level.get("name")),
            level.number("bytes"),
            level.number("seen_bytes"),
            int(level.number("shared_by")),
            level.rate("read"),
        )
        for level in read.parts("levels")
    )
    streams, rows, latency = read.part("streams"), read.part("rows"), read.part("latency_ns")
    sizes = streams.numbers("working_sets")
    machine = Machine(
        name=str(read.get("name")),
        kind=str(read.get("kind")),
        cores=int(read.number("cores")),
        clock_ghz=read.number("clock_ghz", most=20),
        arithmetic={name: read.part("arithmetic").rate(name) for name in TYPES},
        levels=levels,
        streams={which: streams.curve(which, sizes) for which in ("one", "all")},
        rows=_rows(rows),
        latency_ns=latency.curve("ns", latency.numbers("working_sets")),
        call_us={name: read.part("call_us").number(name) for name in read.part("call_us").values},
        gather_in_memory=read.number("gather_in_memory") if "gather_in_memory" in values else 0.0,
    )
    for name in ("gemm", "lookup", "page"):
        read.part("call_us").number(name)
    _check(machine, source)
    return machine


def _rows(rows: _Reader) -> dict[tuple[str, str, str, int], Curve]:
    sizes, found = rows.numbers("working_sets"), {}
    for which in ("one", "all"):
        for pages in PAGES:
            for access in ACCESSES:
                part = rows.part(which).part(pages).part(access)
                for row in part.values:
                    found[which, pages, access, int(row)] = part.curve(row, sizes)
                if not {_LEAST_ROW, _MOST_ROW} <= {key[3] for key in found if key[:3] == (which, pages, access)}:
                    raise UserError(
                        f"{part.source} lacks rows of {_LEAST_ROW} or {_MOST_ROW} bytes: measure the machine again "
                        "with scripts/profile_hardware.py"
                    )
    return found


def _check(machine: Machine, source: str) -> None:
    names = [level.name for level in machine.levels]
    if len(machine.levels) < 2 or names[-1] != "memory":
        raise UserError(f"{source}: levels must run from L1 to memory, not {', '.join(names) or 'be empty'}")
    for inner, outer in zip(machine.levels, machine.levels[1:], strict=False):
        if inner.bytes > outer.bytes:
            raise UserError(
                f"{source}: {inner.name} ({inner.bytes:,.0f} bytes) is larger than {outer.name} ({outer.bytes:,.0f}): "
                "correct the sizes"
            )
    for name, rate in machine.arithmetic.items():
        if rate.all < 0.5 * rate.one:
            raise UserError(
                f"{source}: {name} arithmetic of all threads ({rate.all:g}) is far below that of one ({rate.one:g}): "
                "the machine was busy, measure it again"
            )


class _Reader:
    """Values of a machine file that complain by their full name."""

    def __init__(self, values: Any, source: str) -> None:
        if not isinstance(values, Mapping):
            raise UserError(f"{source} must hold named values, not {type(values).__name__}")
        self.values, self.source = values, source

    def get(self, key: Any) -> Any:
        if self.values.get(key) is None:
            raise UserError(f"{self.source} lacks {key}: measure the machine again with scripts/profile_hardware.py")
        return self.values[key]

    def part(self, key: str) -> _Reader:
        return _Reader(self.get(key), f"{self.source}: {key}")

    def parts(self, key: str) -> list[_Reader]:
        values = self.get(key)
        if not isinstance(values, Sequence) or isinstance(values, str):
            raise UserError(f"{self.source}: {key} must be a list")
        return [_Reader(value, f"{self.source}: {key}[{i}]") for i, value in enumerate(values)]

    def number(self, key: Any, most: float = math.inf) -> float:
        return self._positive(self.get(key), f"{self.source}: {key}", most)

    def numbers(self, key: Any) -> tuple[float, ...]:
        values = self.get(key)
        if not isinstance(values, Sequence) or isinstance(values, str) or not values:
            raise UserError(f"{self.source}: {key} must be a list of numbers")
        return tuple(self._positive(value, f"{self.source}: {key}", math.inf) for value in values)

    def rate(self, key: str) -> Rate:
        part = self.part(key)
        return Rate(part.number("one", _LARGEST), part.number("all", _LARGEST))

    def curve(self, key: Any, sizes: tuple[float, ...]) -> Curve:
        rates = self.numbers(key)
        if len(rates) != len(sizes):
            raise UserError(f"{self.source}: {key} has {len(rates)} values for {len(sizes)} working sets")
        if list(sizes) != sorted(set(sizes)):
            raise UserError(f"{self.source}: working_sets must rise")
        return Curve(sizes, rates)

    @staticmethod
    def _positive(value: Any, where: str, most: float) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < most:
            limit = "" if most == math.inf else f" below {most:g}"
            raise UserError(f"{where} must be a positive number{limit}, not {value!r}")
        if not math.isfinite(value):
            raise UserError(f"{where} must be a finite number, not {value!r}")
        return float(value)


def read_yaml(path: Path) -> Mapping[str, Any]:
    """The content of a YAML file that holds named values.

    Raises:
        UserError: it cannot be read.
    """
    check_ordinary(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the machine file {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"the machine file {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, Mapping):
        raise UserError(f"the machine file {path} must hold named values; write one with scripts/profile_hardware.py")
    return values
