"""Kills a training run at random moments until it is done, and compares it with one that nobody disturbed.

    python scripts/soak.py                      # 20 kills of a tiny run
    python scripts/soak.py --kills 3 ffn=gemm   # anything train.py takes may follow

The run is started by the same command each time, as a user would. Most kills are kill -9, some SIGTERM or SIGINT. The
first may fall into the preparation of the corpus, later ones into steps, validations and checkpoints, as chance has it.
Exit status: 0 where metrics and weights of both are equal to the last bit, 1 where they are not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OVERRIDES = ("model=tiny", "tracker=none", "training.max_steps=300", "training.validate_every=40",
             "training.checkpoint_every=30", "training.log_every=7", "evaluation.max_tokens=32768")  # fmt: skip
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# a signal in the first moments of Python meets no handler yet
STATUSES = {signal.SIGKILL: {-9}, signal.SIGTERM: {143, -15}, signal.SIGINT: {130, -2}}
# differs between any two runs
TIMES = ("tokens_per_s",)
LONGEST_EXIT_S = 60.0

logger = logging.getLogger("soak")


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="how many times to kill (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--folder", type=Path, help="where the runs go (default: a temporary folder)")
    parser.add_argument("overrides", nargs="*", help="settings of the run, as for train.py")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s] %(message)s", datefmt="%H:%M:%S")
    with tempfile.TemporaryDirectory() as scratch:
        folder = (arguments.folder or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        differences = soak(folder, arguments.kills, random.Random(arguments.seed), arguments.overrides)
    for difference in differences:
        logger.error("%s", difference)
    sys.exit(1 if differences else 0)


def soak(folder: Path, kills: int, chance: random.Random, overrides: list[str]) -> list[str]:
    """Trains once in peace and then under fire.

    Args:
        folder: where both runs go.
        kills: how many; a run that is done before it has had them all is compared, and another is begun.
        chance: decides the moments and the signals.
        overrides: settings of the run.

    Returns:
        In what the runs differ, or did not end as they should; empty where all is well.
    """
    began = time.monotonic()
    whole = folder / "whole"
    first_line_s = finish(start(folder, whole, "peace", overrides), whole, folder)
    peace_s = time.monotonic() - began
    logger.info("undisturbed: %.1f s, of which %.1f s to the first line", peace_s, first_line_s)
    training_s = peace_s - first_line_s
    done, number, differences = 0, 0, []
    while True:
        disturbed = folder / f"disturbed-{number}"
        while done < kills:
            process = start(folder, disturbed, "fire", overrides)
            moment, signum = chance.uniform(0.0, first_line_s + 2 * training_s / max(1, kills)), chance.choice(SIGNALS)
            try:
                process.wait(moment)
                break  # done before its time
            except subprocess.TimeoutExpired:
                process.send_signal(signum)
            sent = time.monotonic()
            try:
                status = process.wait(LONGEST_EXIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                differences.append(f"still there {LONGEST_EXIT_S:.0f} s after {signum.name}")
                continue
            if status == 0:
                break
            done += 1
            logger.info(
                "%d of %d: %s after %.1f s, gone in %.1f s, %s",
                done, kills, signum.name, moment, time.monotonic() - sent, where(disturbed),
            )  # fmt: skip
            if status not in STATUSES[signum]:
                differences.append(f"exit status {status} after {signum.name}: {log_end(folder)}")
        if not (disturbed / "summary.json").exists():
            finish(start(folder, disturbed, "fire", overrides), disturbed, folder)
        found = compare(whole, disturbed)
        differences += found
        logger.info("%s: %s", disturbed.name, "equal to the last bit" if not found else "DIFFERENT")
        number += 1
        if done >= kills:
            return differences


def start(folder: Path, run: Path, cache: str, overrides: list[str]) -> subprocess.Popen:
    """The run's command; the disturbed ones share a cache that begins empty, so that preparation is disturbed too."""
    command = [sys.executable, str(ROOT / "train.py"), *OVERRIDES, f"cache_dir={folder / cache}", *overrides]
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [*command, f"output_dir={run}"], cwd=folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "PYTHONUNBUFFERED": "1"},
            # a shell starts what it runs in the background deaf to SIGINT, and children inherit that
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip


def finish(process: subprocess.Popen, run: Path, folder: Path) -> float:
    """Waits for a run's end; seconds to its first line of metrics."""
    began = time.monotonic()
    first = None
    while process.poll() is None:
        if first is None and (run / "metrics.jsonl").exists():
            first = time.monotonic() - began
        time.sleep(0.02)
    if process.returncode != 0:
        raise SystemExit(f"the run ended with status {process.returncode}: {log_end(folder)}")
    return first or time.monotonic() - began


def where(run: Path) -> str:
    """How far a run is."""
    steps = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
    return f"newest checkpoint {steps[-1]}" if steps else "no checkpoint yet"


def log_end(folder: Path) -> str:
    """What was said last."""
    return (folder / "log.txt").read_text(encoding="utf-8", errors="replace")[-1000:]


def compare(whole: Path, disturbed: Path) -> list[str]:
    """In what two finished runs differ."""
    ours, theirs = (metrics(run) for run in (disturbed, whole))
    found = []
    steps = [line["step"] for line in ours]
    if len(set(steps)) != len(steps):
        found.append("a step is logged twice")
    if ours != theirs:
        pairs = zip(ours, theirs, strict=False)
        first = next((a for a, b in pairs if a != b), {"step": "the shorter one's end"})
        found.append(f"metrics differ from step {first['step']}")
    digests = [
        hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).digest() for run in (disturbed, whole)
    ]
    if digests[0] != digests[1]:
        found.append("weights differ")
    results = [json.loads((run / "summary.json").read_text(encoding="utf-8")) for run in (disturbed, whole)]
    if results[0]["validation_loss"] != results[1]["validation_loss"]:
        found.append("validation losses differ")
    return [f"{disturbed.name}: {difference}" for difference in found]


def metrics(run: Path) -> list[dict[str, object]]:
    """metrics.jsonl without times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


if __name__ == "__main__":
    main()
