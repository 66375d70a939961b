"""Draw every table and plot of results/ anew from results/runs/: `python scripts/draw_results.py`, or `make results`.

Each folder of results/runs/ is compared by itself and written to the folder of its name in results/. Tables are kept in
git, and so are the plots that docs/ shows; the other plots are drawn where this is run.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path("results")
LATENCY = RESULTS / "latency.json"


def groups() -> list[str]:
    """The folders of results/runs/ with a finished run; the working directory is the repository's root."""
    from lookupffn.runs.names import SUMMARY

    folders = sorted(path for path in (RESULTS / "runs").iterdir() if path.is_dir())
    return [folder.name for folder in folders if any(folder.rglob(SUMMARY))]


def latency() -> Path | None:
    """CPU times of the runs, by scripts/measure_latency.py; None where they were not measured."""
    return LATENCY if LATENCY.exists() else None


def main(arguments: list[str] | None = None) -> None:
    """Draws all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(arguments)

    from lookupffn.report.compare import compare_runs

    os.chdir(ROOT)  # tables name runs by their paths
    for name in tqdm(groups(), desc="results", unit="group"):
        compare_runs([RESULTS / "runs" / name], RESULTS / name, latency=latency())


if __name__ == "__main__":
    main()
