"""Short runs of every kind, recorded so that a refactoring can be shown to change no number.

``python scripts/record_runs.py record FOLDER`` trains for 60 steps: gemm, lookup, switch and mongoose with whatever
kernels the machine has; lookup by the reference; lookup interrupted and resumed; lookup on two processes; then one
evaluation and one comparison. ``python scripts/record_runs.py compare BEFORE AFTER`` says what differs between two such
folders, recorded on the same machine. Times, versions and paths are left out; all else must be equal to the last bit.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
STEPS = 60
TRAINING = [
    "tracker=none", "data=text", "tokenizer.vocab_size=600", "training.batch_size=8", f"training.max_steps={STEPS}",
    "training.validate_every=20", "training.checkpoint_every=20", "evaluation.max_tokens=4096",
    "training.validate_tokens=2048", "model.sequence_length=32",
]  # fmt: skip
RUNS = ("gemm", "lookup", "switch", "mongoose", "lookup-reference", "lookup-resumed", "lookup-two-processes")
# what differs between two runs of the same code
VOLATILE = ("_s", "seconds", "_commit", "versions", "device_name", "checkpoint", "folder", "_sha256", "threads", "runs")

logger = logging.getLogger(__name__)


def write_text(folder: Path) -> None:
    """Text of the same words on any machine, with enough structure for a loss to fall."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 7))) for _ in range(300)]
    for name, documents in (("train", 400), ("validation", 40)):
        lines = [" ".join(draw.choices(words[: 20 + number % 280], k=60)) for number in range(documents)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))


def record(folder: Path) -> None:
    """Trains, scores and compares; leaves everything in ``folder``, which must not exist."""
    folder = folder.resolve()
    folder.mkdir(parents=True)
    write_text(folder)
    files = [f"data.{split}_files={folder / split}.jsonl" for split in ("train", "validation")]
    common = [*TRAINING, *files, f"cache_dir={folder / 'cache'}"]
    for run in tqdm(RUNS, desc="recording", unit="run"):
        arguments = ["train.py", f"ffn={run.partition('-')[0]}", *common, f"output_dir={folder / 'runs' / run}"]
        if run == "lookup-reference":
            _call(arguments, LOOKUPFFN_BACKEND="reference")
        elif run == "lookup-resumed":
            _interrupt(arguments, folder / "runs" / run / "metrics.jsonl")
            _call(arguments)
        elif run == "lookup-two-processes":
            launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29517"]
            _call([*launcher, *arguments, "training.micro_batches=4"])
        else:
            _call(arguments)
    _call(["evaluate.py", f"checkpoint={folder / 'runs/lookup'}", f"output={folder / 'evaluation.json'}",
           f"cache_dir={folder / 'cache'}"])  # fmt: skip
    _call(["scripts/compare_runs.py", str(folder / "runs"), "--output", str(folder / "comparison")])


def _environment(**more: str) -> dict[str, str]:
    # one thread: the order of sums is then the same on any machine
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **more}


def _call(arguments: list[str], **more: str) -> None:
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=_environment(**more), capture_output=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments[:2])} failed:\n{done.stderr.decode()[-2000:]}")


def _interrupt(arguments: list[str], metrics: Path) -> None:
    """Starts a run and stops it after its 30th step."""
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, env=_environment(), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    while process.poll() is None and not (metrics.exists() and '"step": 30' in metrics.read_text()):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.wait()


def lasting(values: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(key, value) for every value that two runs of the same code share, nested keys joined by dots."""
    if isinstance(values, dict):
        for name, value in values.items():
            if not name.endswith(VOLATILE):
                yield from lasting(value, f"{key}.{name}" if key else name)
    else:
        yield key, values


def contents(folder: Path) -> Iterator[tuple[str, Any]]:
    """Everything in a recorded folder that must not change, by name."""
    from safetensors.torch import load_file

    for run in RUNS:
        path = folder / "runs" / run
        for number, line in enumerate((path / "metrics.jsonl").read_text().splitlines()):
            yield from ((f"{run}/metrics/{number}/{key}", value) for key, value in lasting(json.loads(line)))
        summary = json.loads((path / "summary.json").read_text())
        yield from ((f"{run}/summary/{key}", value) for key, value in lasting(summary))
        for name, tensor in load_file(path / "model/model.safetensors").items():
            yield f"{run}/weights/{name}", tensor.numpy().tobytes()
    yield from (
        (f"evaluation/{key}", value) for key, value in lasting(json.loads((folder / "evaluation.json").read_text()))
    )
    for number, row in enumerate(csv.DictReader((folder / "comparison/table.csv").open())):
        yield from ((f"table/{number}/{key}", value) for key, value in lasting(row))


def compare(before: Path, after: Path) -> list[str]:
    """A line for every recorded value that differs or is in one folder only."""
    old, new = dict(contents(before)), dict(contents(after))
    lines = []
    for key in sorted(old.keys() | new.keys()):
        if key.startswith("table/") and not (key in old and key in new):
            continue  # a column more or less changes no number
        if key not in old or key not in new:
            lines.append(f"{key}: only {'before' if key in old else 'after'}")
        elif repr(old[key]) != repr(new[key]):  # NaN equals NaN here
            shown = [repr(value)[:40] for value in (old[key], new[key])]
            lines.append(f"{key}: {shown[0]}, now {shown[1]}")
    logger.info("%d values compared, %d differ", len(old.keys() | new.keys()), len(lines))
    return lines


def main() -> int:
    """Records or compares; the exit status is 1 where something differs."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("record").add_argument("folder", type=Path)
    both = commands.add_parser("compare")
    both.add_argument("before", type=Path)
    both.add_argument("after", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "record":
        record(arguments.folder)
        return 0
    lines = compare(arguments.before, arguments.after)
    for line in lines:
        logger.info("%s", line)
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
