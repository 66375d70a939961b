"""The plots of a comparison, each as PNG for the eye, SVG for a page and PDF for a paper."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from lookupffn.report.comparison import Comparison
from lookupffn.report.downstream import Score
from lookupffn.report.horizons import Ladder
from lookupffn.report.plots import curves, downstream, tradeoff
from lookupffn.report.plots.style import DPI, RC

FORMATS = ("png", "svg", "pdf")
# without the date the same figures give the same file
_METADATA = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


def draw(comparison: Comparison, folder: Path, swept: Sequence[str] = ()) -> list[str]:
    """Draws what there are figures for.

    Args:
        comparison: the figures.
        folder: where the files go.
        swept: settings to draw perplexity against.

    Returns:
        Names of the files.
    """
    with matplotlib.rc_context(RC):
        figures = {
            "perplexity-flops": tradeoff.flops(comparison),
            "perplexity-cpu": tradeoff.cpu_time(comparison),
            **{
                f"perplexity-{_file_name(machine.device)}": tradeoff.projected_time(comparison, number)
                for number, machine in enumerate(comparison.projections)
            },
            **{f"perplexity-{_file_name(setting)}": tradeoff.swept(comparison, setting) for setting in swept},
            "perplexity-training-flops": curves.training_flops(comparison),
            "validation-loss": curves.loss(comparison),
            "validation-training": tradeoff.generalisation(comparison),
        }
        return [file for name, figure in figures.items() if figure is not None for file in _save(figure, folder, name)]


def draw_ladder(drawn: Ladder, folder: Path) -> list[str]:
    """Draws the losses over several horizons; returns the names of the files."""
    with matplotlib.rc_context(RC):
        return _save(curves.final_losses(drawn), folder, "losses")


def draw_scores(scores: Sequence[Score], folder: Path) -> list[str]:
    """Draws downstream scores, a figure a task; returns the names of the files."""
    files = []
    with matplotlib.rc_context(RC):
        for task, own in groupby(scores, key=lambda score: score.task):
            figure = downstream.scores(list(own))
            files += [] if figure is None else _save(figure, folder, f"score-{_file_name(task)}"[:100])
    return files


def _save(figure: Figure, folder: Path, name: str) -> list[str]:
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # as laid out now, and not anew for every format
    for suffix in FORMATS:
        figure.savefig(folder / f"{name}.{suffix}", dpi=DPI, metadata=_METADATA[suffix])
    return [f"{name}.{suffix}" for suffix in FORMATS]


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", text)
