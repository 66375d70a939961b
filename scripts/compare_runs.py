"""Compare finished runs: tables, and plots of quality against cost.

    python scripts/compare_runs.py outputs/ --output comparison/
    python scripts/compare_runs.py outputs/a outputs/b --output comparison/ --latency latency.json --sort perplexity

Only runs of the same text, tokenizer, masks, model and number of tokens trained are set beside each other; others are
split into groups, each in a folder of its own (lookupffn/report/groups.py has the rule). latency.json is what
scripts/measure_latency.py writes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lookupffn import UserError
from lookupffn.cli.launch import EXIT_USER_ERROR, report_failure
from lookupffn.report.compare import SORTS, compare_runs


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, or folders that hold some at any depth")
    parser.add_argument("--output", type=Path, required=True, help="folder to write; an earlier comparison is replaced")
    parser.add_argument("--latency", type=Path, metavar="JSON", help="CPU times of scripts/measure_latency.py")
    parser.add_argument("--sort", choices=SORTS, default="flops", help="order of the tables (default: flops)")
    parser.add_argument("--strict", action="store_true", help="refuse runs that cannot all be compared")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Compare, write, say what came of it."""
    args = parse(arguments)
    text = compare_runs(args.folders, args.output, latency=args.latency, strict=args.strict, sort=args.sort)
    sys.stdout.write(text)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        report_failure(str(error))
        sys.exit(EXIT_USER_ERROR)
