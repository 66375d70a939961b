"""Trains for half an hour and says whether memory and the time of a step have grown since the first minute.

    python scripts/long_run.py                     # 30 minutes of training steps, model=tiny
    python scripts/long_run.py --minutes 5 ffn=gemm

Memory is what the process and its children have of their own (not the text they have mapped), as the median of each
minute from the first line of metrics.jsonl on; the last minute is compared with the second. The time of a step is CPU
time, which other programs disturb less, as the mean of each tenth of the run; the last is compared with the second.
Exit status: 0 where both grew by no more than 2% and validation and checkpoints took less than 3% of the time, else 1.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GROWTH, SHARE = 0.02, 0.03

logger = logging.getLogger("long_run")


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="of training steps (default: 30)")
    parser.add_argument("--folder", type=Path, help="where the run goes (default: a temporary folder)")
    parser.add_argument("overrides", nargs="*", help="settings of the run, as for train.py")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with tempfile.TemporaryDirectory() as scratch:
        run = (arguments.folder or Path(scratch)).resolve() / "run"
        good = report(*watch(run, arguments.minutes, arguments.overrides), run)
    sys.exit(0 if good else 1)


def watch(run: Path, minutes: float, overrides: list[str]) -> tuple[list[list[int]], list[float]]:
    """Trains; bytes of memory, one list a minute, and CPU seconds from each line of metrics to the next."""
    command = [sys.executable, str(ROOT / "train.py"), "tracker=none", f"training.max_minutes={minutes}"]
    process = subprocess.Popen([*command, *overrides, f"output_dir={run}"])
    memory: list[list[int]] = []
    spent: list[float] = []
    began, lines, cpu = None, 0, 0.0
    while process.poll() is None:
        seen = (run / "metrics.jsonl").read_bytes().count(b"\n") if (run / "metrics.jsonl").exists() else 0
        if seen > lines:
            now = cpu_seconds(process.pid)
            spent += [(now - cpu) / (seen - lines)] * (lines > 0)
            began, lines, cpu = began or time.monotonic(), seen, now
        if began is not None:
            minute = int((time.monotonic() - began) // 60)
            memory += [[] for _ in range(minute + 1 - len(memory))]
            memory[minute].append(own_memory(process.pid))
        time.sleep(0.2)
    if process.returncode != 0:
        raise SystemExit(f"the run ended with status {process.returncode}")
    return memory, spent


def own_memory(pid: int) -> int:
    """Bytes a process and its children have in memory and share with no file; 0 for one that is gone."""
    total, waiting = 0, [pid]
    while waiting:
        folder = Path("/proc", str(waiting.pop()))
        try:
            (line,) = (line for line in (folder / "status").read_text().splitlines() if line.startswith("RssAnon"))
            total += int(line.split()[1]) * 1024
            for children in folder.glob("task/*/children"):
                waiting += map(int, children.read_text().split())
        except (OSError, ValueError):
            continue
    return total


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def report(memory: list[list[int]], spent: list[float], run: Path) -> bool:
    """Writes the figures; whether they are within bounds."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    tenth = max(1, len(spent) // 10)
    # not medians: the look at the clock is up to a fifth of a second late, which only a mean evens out
    parts = [statistics.fmean(spent[i : i + tenth]) for i in range(0, tenth * 10, tenth) if spent[i : i + tenth]]
    minutes = [statistics.median(samples) for samples in memory if len(samples) > 5]
    if len(minutes) < 3 or len(parts) < 3:
        raise SystemExit("too short to tell: give more --minutes")
    grown, slower = minutes[-1] / minutes[1] - 1.0, parts[-1] / parts[1] - 1.0
    steps, aside = summary["training_s"], summary["validation_s"] + summary["checkpoint_s"]
    share = aside / (aside + steps)
    logger.info("memory a minute, MiB: %s", " ".join(f"{value / 2**20:.0f}" for value in minutes))
    logger.info("time a step by tenths, relative: %s", " ".join(f"{part / parts[1]:.3f}" for part in parts))
    logger.info("memory grew by %.2f%%, steps by %.2f%%", 100 * grown, 100 * slower)
    logger.info(
        "validation %.1f s, checkpoints %.1f s, steps %.1f s: %.2f%%",
        summary["validation_s"], summary["checkpoint_s"], steps, 100 * share,
    )  # fmt: skip
    return grown <= GROWTH and slower <= GROWTH and share <= SHARE


if __name__ == "__main__":
    main()
