"""Hold the predicted time of feed-forwards against the measured one, on the machine at hand.

    python scripts/check_hardware.py measure --folder points/ [--points 84] [--seconds 150] [--only model]
    python scripts/check_hardware.py fit --folder points/ --hardware machine.yaml
    python scripts/check_hardware.py check --folder points/ --hardware machine.yaml --plot docs/hardware/
    python scripts/check_hardware.py advise --folder points/ --hardware machine.yaml [--seconds 150]
    python scripts/check_hardware.py strategies

``measure`` times points drawn by a seed into two files, one to make the model with and one held out; a call that was
interrupted or ran out of --seconds is taken up by the next. ``fit`` finds the shares of the machine's peaks that the
kernels attain (lookupffn/profiling/attained.yaml) from the first file alone. ``check`` says how far predictions are
off, on both files apart. ``advise`` measures every choice that the planner has in some cases, once, and says what its
recommendations are worth. ``strategies`` measures side by side what each way to do a lookup is worth.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# the kernels must be compiled with debugging information for samples to be told apart
os.environ.setdefault("LOOKUPFFN_CXXFLAGS", "-g")

from tqdm import tqdm

from lookupffn import UserError
from lookupffn.cli.launch import run_script

if TYPE_CHECKING:
    from lookupffn.profiling.explain import Prediction
    from lookupffn.profiling.machine import Machine
    from lookupffn.profiling.points import Measured

BATCH = 7  # points whose samples are explained together
MODEL, HELD_OUT, ADVICE = "points-model.csv", "points-held-out.csv", "advice.csv"
FILES = {"model": (MODEL,), "held-out": (HELD_OUT,), "both": (MODEL, HELD_OUT)}

TIME_IS_UP = "time is up: the same command goes on\n"


def measure_points(folder: Path, count: int, budget: float, each: float, only: str, seed: int | None) -> bool:
    """Measures what is missing in a folder's files for ``budget`` seconds; returns whether all is there."""
    from lookupffn.profiling.loops import processors
    from lookupffn.profiling.measure_points import measure
    from lookupffn.profiling.points import SEED, drawn, read_points, write_points

    seed = SEED if seed is None else seed
    folder.mkdir(parents=True, exist_ok=True)
    cores = len(processors())
    both = dict(zip((MODEL, HELD_OUT), drawn(count, [1, cores] if cores > 1 else [1], seed), strict=True))
    wanted = {name: both[name] for name in FILES[only]}
    done: dict[str, list[Measured]] = {}
    for name in wanted:
        done[name] = read_points(folder / name) if (folder / name).is_file() else []
    missing = {
        name: [point for point in wanted[name] if point not in {one.point for one in done[name]}] for name in wanted
    }
    left, count = (sum(map(len, points.values())) for points in (missing, wanted))
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


def measure_advice(folder: Path, machine: Machine, budget: float) -> bool:
    """Measures the cases of advice that are missing for ``budget`` seconds; returns whether all are there."""
    from lookupffn.profiling import advice_check

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ADVICE
    done = advice_check.read_choices(path) if path.is_file() else []
    missing = [case for case in advice_check.CASES if str(case) not in {one.case for one in done}]
    end = time.monotonic() + budget
    for case in tqdm(missing, desc="measuring", unit="case", file=sys.stderr):
        if time.monotonic() > end:
            return False
        done += advice_check.measure_case(case, machine)
        advice_check.write_choices(path, done)
    return True


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["measure", "fit", "check", "advise", "strategies"])
    parser.add_argument("--folder", type=Path, help="where the measured points are")
    parser.add_argument(
        "--points", type=int, default=84, help="how many to draw, a third of them held out (%(default)s)"
    )
    parser.add_argument("--seed", type=int, help="of the draw and of what is held out (default: profiling/points.py)")
    parser.add_argument("--only", choices=list(FILES), default="both", help="measure: which of the two files")
    parser.add_argument("--seconds", type=float, default=1e9, help="measure for as long as this, then stop")
    parser.add_argument("--each", type=float, default=1.0, help="seconds a point (1)")
    parser.add_argument("--hardware", type=Path, metavar="YAML", help="the machine's profile")
    parser.add_argument("--plot", type=Path, metavar="FOLDER", help="draw predicted against measured")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """One of the actions."""
    args = parse(arguments)

    from lookupffn.profiling import advice_check
    from lookupffn.profiling.attained import save
    from lookupffn.profiling.check import fit
    from lookupffn.profiling.hardware import load_machine
    from lookupffn.profiling.points import read_points
    from lookupffn.profiling.strategies import markdown, measure_strategies

    if args.action == "strategies":
        with tqdm(desc="measuring", unit="part", total=3, file=sys.stderr) as bar:
            sys.stdout.write(markdown(measure_strategies(bar.update)))
        return
    if args.folder is None:
        raise UserError(f"{args.action} needs a folder of measured points: --folder FOLDER")
    if args.action == "measure":
        whole = measure_points(args.folder, args.points, args.seconds, args.each, args.only, args.seed)
        sys.stdout.write("all points are measured\n" if whole else TIME_IS_UP)
        return
    if args.hardware is None:
        raise UserError(
            f"{args.action} needs the profile of the machine that the points were measured on: --hardware FILE"
        )
    machine = load_machine(args.hardware)
    if args.action == "advise":
        if measure_advice(args.folder, machine, args.seconds):
            choices = advice_check.read_choices(args.folder / ADVICE)
            sys.stdout.write(advice_check.report(advice_check.outcomes(choices, machine)))
        else:
            sys.stdout.write(TIME_IS_UP)
        return
    if args.action == "fit":
        points = read_points(args.folder / MODEL)
        about = {"date": datetime.date.today().isoformat(), "machine": machine.name, "points": len(points)}
        save(fit(points, machine), about)
    check(args.folder, machine, args.action == "check", args.plot)


def check(folder: Path, machine: Machine, held_out: bool, plot: Path | None) -> None:
    """Prints how far predictions are off, and draws them into a folder."""
    from lookupffn.profiling.check import errors, predictions, report
    from lookupffn.profiling.plots import plot_check
    from lookupffn.profiling.points import read_points

    shown: list[tuple[Measured, Prediction, bool]] = []
    for name in (MODEL, HELD_OUT) if held_out else (MODEL,):
        if name != MODEL and not (folder / name).exists():
            sys.stdout.write(f"{Path(name).stem}: none\n")
            continue
        points = read_points(folder / name)
        predicted = predictions(points, machine)
        sys.stdout.write(report(Path(name).stem, errors(points, predicted)))
        shown += [(one, prediction, name == HELD_OUT) for one, prediction in zip(points, predicted, strict=True)]
    if plot:
        measured, explained, held = zip(*shown, strict=True)
        plot_check(measured, explained, plot / "predicted.png", machine.name, held)


if __name__ == "__main__":
    run_script(main)
