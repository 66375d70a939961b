"""Machines by name or file: measured ones, those of data sheets, and hypothetical ones.

A data sheet says how much a cycle computes, how large the caches are and what the memory gives. What it does not say
(the rate of random rows, of one thread, of a call) is taken from the reference machine, which was measured, in
proportion: the same share of the same level's peak.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from math import log2
from pathlib import Path
from typing import Any

from lookupffn.errors import UserError, unknown_name
from lookupffn.profiling.machine import TYPES, Curve, Level, Machine, Rate, machine_from, read_yaml

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "hardware"
REFERENCE = "epyc_zen4_2core"
# No machine measured here has a core count that saturates its memory. STREAM on full sockets attains about this share.
MEMORY_SHARE = 0.8
_FIGURES = (
    "cores",
    "clock_ghz",
    *(f"{kind}_per_cycle" for kind in TYPES),
    *("l1_kb", "l2_kb", "l2_shared_by", "l3_mb", "l3_shared_by"),
    *("memory_gb", "memory_gbs"),
)
_CHANGES = ("cache", "memory", "matrix", "gather_in_memory")
_SIZES = tuple(float(1 << power) for power in range(14, 32))


def names() -> list[str]:
    """The machines of configs/hardware/."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_machine(name: str | Path) -> Machine:
    """A machine by its name in configs/hardware/, or by its file.

    Raises:
        UserError: there is none, or it is incomplete or absurd.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = FOLDER / f"{name}.yaml"
        if not path.is_file():
            raise unknown_name("hardware", name, names())
    return machine_of(read_yaml(path), str(path))


def machine_of(values: Mapping[str, Any], source: str) -> Machine:
    """A machine out of the content of a file of any kind.

    Args:
        values: as configs/hardware/*.yaml have them.
        source: what to call it in messages.

    Raises:
        UserError: it is incomplete or absurd.
    """
    kind = values.get("kind")
    if kind == "measured":
        return machine_from(values, source)
    if kind == "datasheet":
        return _derived(str(values.get("name")), "datasheet", _figures(values, source), {}, source)
    if kind == "hypothetical":
        base = values.get("base")
        if base not in names():
            raise UserError(f"{source}: base must be the data sheet of another machine here, not {base!r}")
        changes = values.get("times")
        unknown = set(changes or ()) - set(_CHANGES)
        if not isinstance(changes, Mapping) or unknown:
            raise UserError(f"{source}: times must give a factor for some of {', '.join(_CHANGES)}")
        for change, factor in changes.items():
            _number(factor, f"{source}: times.{change}")
        path = FOLDER / f"{base}.yaml"
        return _derived(str(values.get("name")), "hypothetical", _figures(read_yaml(path), str(path)), changes, source)
    raise UserError(f"{source}: kind must be measured, datasheet or hypothetical, not {kind!r}")


def _figures(values: Mapping[str, Any], source: str) -> dict[str, tuple[float, str]]:
    """Each figure with where it is from.

    Raises:
        UserError: a figure is missing, is no positive number, or does not say where it is from.
    """
    given = values.get("figures")
    if not isinstance(given, Mapping):
        raise UserError(f"{source} lacks figures")
    found = {}
    for name in _FIGURES:
        figure = given.get(name)
        if not isinstance(figure, Mapping) or "value" not in figure:
            raise UserError(f"{source} lacks figures.{name}: give value, source and date")
        value = figure["value"]
        if name != "l3_mb" or value != 0:  # there are processors without a third level
            _number(value, f"{source}: figures.{name}")
        if not figure.get("source") or not figure.get("date"):
            raise UserError(f"{source}: figures.{name} does not say its source and date")
        found[name] = float(value), f"{figure['source']} ({figure['date']})"
    return found


def _number(value: Any, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise UserError(f"{where} must be a positive number, not {value!r}")


@cache
def reference() -> Machine:
    """The measured machine whose shares stand for what data sheets do not say."""
    return load_machine(REFERENCE)


def _derived(
    name: str, kind: str, figures: Mapping[str, tuple[float, str]], times: Mapping[str, float], source: str
) -> Machine:
    """A machine by its data sheet.

    Random rows and streams of a working set are those of the levels in which its parts lie: the first C bytes of it
    in a cache of C bytes, the rest in the next.
    """
    f = {key: value for key, (value, _) in figures.items()}
    cores, clock = int(f["cores"]), f["clock_ghz"]
    seen = reference()
    ratio = clock / seen.clock_ghz
    matrix = times.get("matrix", 1.0)
    arithmetic = {}
    for kind_ in TYPES:
        factor = matrix if kind_ != "float32" else 1.0
        one = clock * f[f"{kind_}_per_cycle"] * factor
        arithmetic[kind_] = Rate(one, one * cores)
    bigger = times.get("cache", 1.0)
    sizes = [f["l1_kb"] * 1024, f["l2_kb"] * 1024 * bigger, f["l3_mb"] * 2**20 * bigger]
    shared = [1, int(f["l2_shared_by"]), int(f["l3_shared_by"])]
    memory_all = f["memory_gbs"] * MEMORY_SHARE * times.get("memory", 1.0)
    # of one core: caches by the clock; the memory's by misses in flight, which do not follow the clock
    ones = [level.read.one * ratio for level in seen.levels[:-1]] + [min(seen.levels[-1].read.one, memory_all)]
    levels = []
    for i, (size, by, one) in enumerate(zip(sizes, shared, ones, strict=False)):
        if size:
            levels.append(Level(f"L{i + 1}", size, size, min(by, cores), Rate(one, one * cores)))
    total = f["memory_gb"] * 2**30
    levels.append(Level("memory", total, total, cores, Rate(ones[-1], min(ones[-1] * cores, memory_all))))
    if (len(levels) == 3 and sizes[1] > total) or any(level.bytes > total for level in levels):
        raise UserError(f"{source}: a cache is larger than the memory ({f['memory_gb']:g} GB)")
    memory_factor = times.get("memory", 1.0)
    near = memory_all * times["gather_in_memory"] if "gather_in_memory" in times else 0.0
    return Machine(
        name=name,
        kind=kind,
        cores=cores,
        clock_ghz=clock,
        arithmetic=arithmetic,
        levels=tuple(levels),
        streams={
            "one": _mixed(levels, [1] * len(levels), [level.read.one for level in levels]),
            "all": _mixed(levels, _instances(levels, cores), [level.read.all for level in levels]),
        },
        rows=_rows(levels, cores, memory_factor),
        latency_ns=Curve(seen.latency_ns.working_sets, tuple(ns / ratio for ns in seen.latency_ns.rates)),
        call_us={key: us / ratio for key, us in seen.call_us.items()},
        gather_in_memory=near,
        sources={key: text for key, (_, text) in figures.items()},
    )


def _instances(levels: list[Level], cores: int) -> list[float]:
    return [max(1, cores // level.shared_by) for level in levels]


def _mixed(levels: list[Level], instances: list[float], rates: list[float]) -> Curve:
    """Rates over working sets: the time of a byte is the mean over the levels in which the working set lies."""
    found = []
    for size in _SIZES:
        seconds = reached = 0.0
        for level, number, rate in zip(levels, instances, rates, strict=True):
            inside = size if level is levels[-1] else min(size, level.bytes * number)
            seconds += max(0.0, inside - reached) / rate
            reached = max(reached, inside)
        found.append(size / seconds)
    return Curve(_SIZES, tuple(found))


def _rows(levels: list[Level], cores: int, memory_factor: float) -> dict[tuple[str, str, str, int], Curve]:
    """Random rows: each level's streaming rate times the share that the reference machine attains for such rows.

    All threads read one table, so that a cache holds as much of it as it would alone.
    """
    seen = reference()
    inside = {"L1": 16 << 10, "L2": 256 << 10, "L3": 8 << 20, "memory": 1 << 30}
    rows = {}
    for key, curve in seen.rows.items():
        which = key[0]
        rates = []
        for level in levels:
            mine = next(other for other in seen.levels if other.name == level.name)
            share = curve.at(inside[level.name]) / getattr(mine.read, which)
            rate = getattr(level.read, which) * share
            if level.name == "memory" and which == "all":
                # two cores do not saturate a socket's memory, all of them do: rows then cost what lines cost
                rate = min(seen_one(seen, key) * cores * memory_factor, level.read.all)
            rates.append(rate)
        rows[key] = _mixed(levels, [1] * len(levels), rates)
    return rows


def seen_one(seen: Machine, key: tuple[str, str, str, int]) -> float:
    """What one thread of a measured machine reads of such rows in memory."""
    return seen.rows[("one", *key[1:])].at(1 << 30)


def describe(machine: Machine) -> str:
    """One line: cores, peaks, caches, memory."""
    caches = ", ".join(
        f"{level.name} {level.bytes / 2**20:.3g} MB" + (f" for {level.shared_by}" if level.shared_by > 1 else "")
        for level in machine.levels[1:-1]
    )
    peak = machine.arithmetic["float32"].all
    return (
        f"{machine.name}: {machine.cores} cores of {machine.clock_ghz:.3g} GHz, {peak / 1000:.3g} TFLOP/s float32 "
        f"({log2(machine.arithmetic['int8'].all / peak):+.1f} doublings to int8), {caches}, memory "
        f"{machine.levels[-1].read.all:.3g} GB/s"
    )
