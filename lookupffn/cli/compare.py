"""Compare finished runs: tables, and plots of quality against cost.

    lookupffn-compare outputs/race                          writes outputs/race/comparison/
    lookupffn-compare outputs/a outputs/b --output both --latency latency.json --sort perplexity
    lookupffn-compare outputs/tables --x ffn.num_tables     and perplexity against what was swept
    lookupffn-compare outputs/race --hardware grace         and against the time projected to another machine

Only runs of the same text, tokenizer, masks, model and number of tokens trained are set beside each other; others are
split into groups, each in a folder of its own (lookupffn/report/groups.py has the rule). Groups that differ in their
tokens alone are read together as well, in horizons/. latency.json is what scripts/measure_latency.py writes. From the
repository the same command is `python scripts/compare_runs.py`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lookupffn.cli.launch import run_script

if TYPE_CHECKING:
    from lookupffn.report.inference_times import InferenceTimes


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    from lookupffn.report.compare import SORTS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, or folders that hold some at any depth")
    parser.add_argument(
        "--output",
        type=Path,
        help="folder to write; an earlier comparison is replaced (default: comparison/ in FOLDER)",
    )
    parser.add_argument("--latency", type=Path, metavar="JSON", help="CPU times of scripts/measure_latency.py")
    parser.add_argument(
        "--hardware", action="append", default=[], metavar="MACHINE",
        help="project times to a machine: a name of configs/hardware/, or a file of scripts/profile_hardware.py; in "
        "float32, 8,192 tokens a call, all cores (scripts/project_hardware.py has more choices); may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--projected", action="append", default=[], type=Path, metavar="JSON",
        help="times projected to a machine, in the form of latency.json; may be repeated",
    )  # fmt: skip
    parser.add_argument("--sort", choices=SORTS, default="flops", help="order of the tables (default: flops)")
    parser.add_argument(
        "--x", action="append", default=[], metavar="SETTING", dest="swept",
        help="draw perplexity against a setting too, as ffn.num_tables or optimizer.lr; may be repeated",
    )  # fmt: skip
    parser.add_argument("--strict", action="store_true", help="refuse runs that cannot all be compared")
    parser.add_argument("--no-plots", action="store_false", dest="plots", help="write tables only")
    return parser.parse_args(arguments)


def run(arguments: list[str] | None = None) -> None:
    """Compares, writes, says what came of it; raises a ``UserError`` where something is wrong."""
    args = parse(arguments)

    from lookupffn.report.compare import compare_runs
    from lookupffn.report.inference_times import read_times

    projected = [read_times(path) for path in args.projected]
    if args.hardware:
        projected += _projections(args.folders, args.hardware)
    text = compare_runs(
        args.folders, args.output, latency=args.latency, strict=args.strict, sort=args.sort, swept=args.swept,
        projected=projected, plots=args.plots,
    )  # fmt: skip
    sys.stdout.write(text)


def _projections(folders: Sequence[Path], machines: Sequence[str]) -> list[InferenceTimes]:
    from lookupffn.cli.project_hardware import run_times
    from lookupffn.profiling.hardware import load_machine
    from lookupffn.report.inference_times import times_from
    from lookupffn.report.runs import find_runs

    loaded = [load_machine(name) for name in machines]
    runs = find_runs(folders).runs
    return [times_from(run_times(runs, machine), machine.name) for machine in loaded]


def main(arguments: list[str] | None = None) -> None:
    """The command; exits with 2 after a user's mistake."""
    run_script(lambda: run(arguments), arguments)
