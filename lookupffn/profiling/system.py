"""What the system says about itself: caches, memory, other work, hardware counters."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import time
from pathlib import Path

_CPU = Path("/sys/devices/system/cpu")
_COUNTERS = ("cycles", "instructions", "cache-misses", "dTLB-load-misses")


def processor_name() -> str:
    """The processor's model name, and the number of logical ones that this process may use."""
    try:
        text = Path("/proc/cpuinfo").read_text()
        names = re.findall(r"^(?:model name|Model)\s*: (.*)$", text, re.MULTILINE)
        family = re.search(r"^cpu family\s*: (.*)$", text, re.MULTILINE)
        model = re.search(r"^model\s*: (.*)$", text, re.MULTILINE)
        suffix = f" (family {family[1]}, model {model[1]})" if family and model else ""
        return (names[0] if names else platform.machine()) + suffix
    except OSError:
        return platform.processor() or platform.machine()


def stated_caches() -> list[tuple[str, int, int]]:
    """Name, bytes and sharing processors of each data cache, from L1 on, as the system states them."""
    found: dict[int, tuple[str, int, int]] = {}
    for index in sorted((_CPU / "cpu0" / "cache").glob("index*")):
        try:
            kind, level = (index / "type").read_text().strip(), int((index / "level").read_text())
            size = (index / "size").read_text().strip()
            shared = _count((index / "shared_cpu_list").read_text())
        except (OSError, ValueError):
            continue
        if kind in ("Data", "Unified"):
            unit = {"K": 1 << 10, "M": 1 << 20}.get(size[-1:], 1)
            found[level] = (f"L{level}", int(size.rstrip("KM")) * unit, shared)
    return [found[level] for level in sorted(found)]


def _count(processors: str) -> int:
    """How many a list like 0-3,8 names."""
    total = 0
    for part in processors.strip().split(","):
        first, _, last = part.partition("-")
        total += int(last or first) - int(first) + 1
    return total


def memory_bytes() -> tuple[int, int]:
    """All memory, and what is free for use now."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = page * os.sysconf("SC_PHYS_PAGES")
    try:
        match = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    return total, int(match[1]) << 10 if match else total // 2


def peak_resident_bytes() -> int:
    """The most memory that this program has had, 0 where the system does not say.

    Not getrusage's figure: that of a started process counts from its parent's.
    """
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return int(found[1]) << 10 if found else 0


class OtherWork:
    """What others take of all processors' time while a block runs: ``share``, 0 where the system does not say."""

    share = 0.0

    def __enter__(self) -> OtherWork:
        self._ticks, self._own = _busy_ticks(), _own_ticks()
        return self

    def __exit__(self, *_: object) -> None:
        ticks, own = _busy_ticks(), _own_ticks() - self._own
        if self._ticks is not None and ticks is not None and ticks[1] > self._ticks[1]:
            self.share = max(0.0, (ticks[0] - self._ticks[0] - own) / (ticks[1] - self._ticks[1]))


def other_work(seconds: float = 1.0) -> float:
    """The share of all processors' time that others take now."""
    with OtherWork() as work:
        time.sleep(seconds)
    return work.share


def _own_ticks() -> float:
    times = os.times()
    return (times.user + times.system) * os.sysconf("SC_CLK_TCK")


def _busy_ticks() -> tuple[int, int] | None:
    try:
        ticks = [int(part) for part in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)  # without idle and waiting for disks


def counters_reason() -> str | None:
    """Why hardware counters cannot be read by perf; None where they can."""
    if shutil.which("perf") is None:
        return "perf is not installed"
    command = ["perf", "stat", "-x,", "-e", ",".join(_COUNTERS), "true"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"perf does not run: {error}"
    if result.returncode:
        return f"perf refuses: {' '.join(result.stderr.split())[:200]}"
    if "<not supported>" in result.stderr:
        return "perf has no hardware counters here (a virtual machine, as a rule)"
    return None


def count(command: list[str]) -> dict[str, float]:
    """Hardware counts of a command by perf; what could not be counted is left out."""
    full = ["perf", "stat", "-x,", "-e", ",".join(_COUNTERS), *command]
    result = subprocess.run(full, capture_output=True, text=True, timeout=120, check=False)
    counts = {}
    for line in result.stderr.splitlines():
        fields = line.split(",")
        if len(fields) > 2 and fields[2].split(":")[0] in _COUNTERS:
            try:
                counts[fields[2].split(":")[0]] = float(fields[0])
            except ValueError:
                continue
    return counts
