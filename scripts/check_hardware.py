"""Hold the predicted time of feed-forwards against the measured one, on the machine at hand.

    python scripts/check_hardware.py measure --folder points/ [--points 99] [--seconds 150]
    python scripts/check_hardware.py fit --folder points/ --hardware machine.yaml
    python scripts/check_hardware.py check --folder points/ --hardware machine.yaml --plot docs/hardware/

``measure`` times points drawn by a seed into two files, one to make the model with and one held out; a call that was
interrupted or ran out of --seconds is taken up by the next. ``fit`` finds the shares of the machine's peaks that the
kernels attain (lookupffn/profiling/attained.yaml) from the first file alone. ``check`` says how far predictions are
off, on both files apart.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# the kernels must be compiled with debugging information for samples to be told apart
os.environ.setdefault("LOOKUPFFN_CXXFLAGS", "-g")

from tqdm import tqdm

from lookupffn import UserError
from lookupffn.cli.launch import EXIT_USER_ERROR, configure_logging, report_failure
from lookupffn.profiling.attained import save
from lookupffn.profiling.check import errors, fit, predictions, report
from lookupffn.profiling.explain import Prediction
from lookupffn.profiling.hardware import load_machine
from lookupffn.profiling.loops import processors
from lookupffn.profiling.plots import plot_check
from lookupffn.profiling.points import Measured, drawn, measure, read_points, write_points

BATCH = 11  # points whose samples are explained together
MODEL, HELD_OUT = "points-model.csv", "points-held-out.csv"


def measure_points(folder: Path, count: int, budget: float, each: float) -> bool:
    """Measures what is missing in a folder's two files for ``budget`` seconds; returns whether all is there."""
    folder.mkdir(parents=True, exist_ok=True)
    cores = len(processors())
    wanted = dict(zip((MODEL, HELD_OUT), drawn(count, [1, cores] if cores > 1 else [1]), strict=True))
    done: dict[str, list[Measured]] = {}
    for name in wanted:
        done[name] = read_points(folder / name) if (folder / name).is_file() else []
    missing = {
        name: [point for point in wanted[name] if point not in {one.point for one in done[name]}] for name in wanted
    }
    left = sum(len(points) for points in missing.values())
    end = time.monotonic() + budget
    with tqdm(total=count, initial=count - left, desc="measuring", file=sys.stderr) as bar:
        for name, points in missing.items():
            for first in range(0, len(points), BATCH):
                some = points[first : first + BATCH]
                if time.monotonic() > end:
                    return False
                done[name] += measure(some, seconds=each, progress=bar.update)
                write_points(folder / name, done[name])
    return True


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["measure", "fit", "check"])
    parser.add_argument("--folder", type=Path, required=True, help="where the measured points are")
    parser.add_argument("--points", type=int, default=99, help="how many to draw, a third of them held out (99)")
    parser.add_argument("--seconds", type=float, default=1e9, help="measure for as long as this, then stop")
    parser.add_argument("--each", type=float, default=1.0, help="seconds a point (1)")
    parser.add_argument("--hardware", type=Path, metavar="YAML", help="the machine's profile")
    parser.add_argument("--plot", type=Path, metavar="FOLDER", help="draw predicted against measured")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure, fit or check."""
    args = parse(arguments)
    if args.action == "measure":
        whole = measure_points(args.folder, args.points, args.seconds, args.each)
        sys.stdout.write("all points are measured\n" if whole else "time is up: the same command goes on\n")
        return
    if args.hardware is None:
        raise UserError(
            f"{args.action} needs the profile of the machine that the points were measured on: --hardware FILE"
        )
    machine = load_machine(args.hardware)
    if args.action == "fit":
        points = read_points(args.folder / MODEL)
        about = {"date": datetime.date.today().isoformat(), "machine": machine.name, "points": len(points)}
        save(fit(points, machine), about)
    shown: list[tuple[Measured, Prediction, bool]] = []
    for name in (MODEL, HELD_OUT) if args.action == "check" else (MODEL,):
        points = read_points(args.folder / name)
        predicted = predictions(points, machine)
        sys.stdout.write(report(Path(name).stem, errors(points, predicted)))
        shown += [(one, prediction, name == HELD_OUT) for one, prediction in zip(points, predicted, strict=True)]
    if args.plot:
        measured, predicted, held = zip(*shown, strict=True)
        plot_check(measured, predicted, args.plot / "predicted.png", machine.name, held)


if __name__ == "__main__":
    configure_logging()
    try:
        main()
    except UserError as error:
        report_failure(str(error))
        sys.exit(EXIT_USER_ERROR)
