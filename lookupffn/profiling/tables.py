"""A machine in words: what scripts/profile_hardware.py prints."""

from __future__ import annotations

from collections.abc import Iterator

from lookupffn.profiling.machine import Curve, Machine

_TOLERANCE = 0.1


def size_text(size: float) -> str:
    """Bytes with a unit: 32 KB, 1.5 MB."""
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1024 or unit == "GB":
            return f"{size:.3g} {unit}"
        size /= 1024
    raise AssertionError


def machine_table(machine: Machine) -> str:
    """Arithmetic, levels, random rows and calls, for a terminal."""
    every = f"{machine.cores} threads"
    lines = [f"{machine.name}, {machine.cores} cores, {machine.clock_ghz:.2f} GHz", ""]
    lines.append(f"{'G operations a second':<28}{'one thread':>12}{every:>12}")
    for name, rate in machine.arithmetic.items():
        lines.append(f"  {name:<26}{rate.one:>12,.0f}{rate.all:>12,.0f}")
    lines += ["", f"{'GB/s in order':<16}{'stated':>12}{'one thread':>12}{every:>12}{'seen':>12}"]
    for level in machine.levels:
        sizes = size_text(level.bytes), size_text(level.seen_bytes)
        lines.append(f"  {level.name:<14}{sizes[0]:>12}{level.read.one:>12,.0f}{level.read.all:>12,.0f}{sizes[1]:>12}")
    lines += ["", f"GB/s of rows at random, {every}, huge pages, prefetched (in brackets: small pages, not prefetched)"]
    known = sorted({key[3] for key in machine.rows})
    lines.append(f"{'':<10}" + "".join(f"{f'{row} B':>16}" for row in known))
    some = machine.rows["all", "huge", "prefetched", known[0]]
    for size in some.working_sets[::2]:
        cells = []
        for row in known:
            best = machine.rows["all", "huge", "prefetched", row].at(size)
            worst = machine.rows["all", "small", "plain", row].at(size)
            cells.append(f"{f'{best:,.0f} ({worst:,.0f})':>16}")
        lines.append(f"{size_text(size):<10}" + "".join(cells))
    lines.append("")
    lines.append("calls from Python, us: " + ", ".join(f"{name} {us:.3g}" for name, us in machine.call_us.items()))
    return "\n".join(lines) + "\n"


def figures(machine: Machine) -> dict[str, float]:
    """Every measured figure, by what it is."""
    found = {"clock": machine.clock_ghz}
    for name, rate in machine.arithmetic.items():
        found |= {f"{name} arithmetic, one": rate.one, f"{name} arithmetic, all": rate.all}
    for which, curve in machine.streams.items():
        found |= {f"in order, {size_text(size)}, {which}": value for size, value in _points(curve)}
    for (which, pages, access, row), curve in machine.rows.items():
        name = f"{which}, {pages} pages, {access}"
        found |= {f"rows of {row} B in {size_text(size)}, {name}": value for size, value in _points(curve)}
    found |= {f"latency in {size_text(size)}": ns for size, ns in _points(machine.latency_ns)}
    return found | {f"call of {name}": us for name, us in machine.call_us.items()}


def _points(curve: Curve) -> Iterator[tuple[float, float]]:
    return zip(curve.working_sets, curve.rates, strict=True)


def differences(before: Machine, after: Machine, shown: int = 40) -> str:
    """The figures of two profiles that differ by more than a tenth, and how many do not."""
    first, second = figures(before), figures(after)
    pairs = {name: (value, second[name]) for name, value in first.items() if name in second}
    far = {name: pair for name, pair in pairs.items() if max(pair) > (1 + _TOLERANCE) * min(pair)}
    lines = [f"{len(pairs) - len(far)} of {len(pairs)} figures repeat within {_TOLERANCE:.0%}"]
    lines += [f"  {name}: {pair[0]:.3g}, now {pair[1]:.3g}" for name, pair in list(far.items())[:shown]]
    if len(far) > shown:
        lines.append(f"  and {len(far) - shown} more")
    return "\n".join(lines) + "\n"
