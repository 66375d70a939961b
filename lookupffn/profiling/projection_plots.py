"""Figures of projections: one machine over shapes, and all machines in one look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm

from lookupffn.profiling.machine import TYPES, Machine
from lookupffn.profiling.plots import COLOURS, new_figure, save
from lookupffn.profiling.project import SIZES, TOKENS, Projected, best, grid, position, resized
from lookupffn.profiling.shape import Point

_FAR = 3.0  # doublings at which colours end
_SCENES = ((1, "1 token"), (128, "128 tokens"), (8192, "8,192 tokens"))


def plot_axes(projected: Mapping[str, Sequence[Projected]], machine: Machine, path: Path) -> None:
    """Microseconds a token of both feed-forwards along each axis, and how the lookup's parts make them up.

    Args:
        projected: rows of points by axis.
        machine: where.
        path: PNG to write.
    """
    figure = new_figure(3.6 * len(projected), 4.4)
    for axes, (axis, row) in zip(figure.subplots(1, len(projected), squeeze=False)[0], projected.items(), strict=True):
        at = np.arange(len(row))
        bottom = np.zeros(len(row))
        for part, colour in zip(row[0].prediction.lookup, COLOURS, strict=False):
            values = np.array([1e6 * one.prediction.lookup[part] / one.point.tokens for one in row])
            axes.bar(at, values, bottom=bottom, color=colour, label=part, width=0.7)
            bottom += values
        gemm = [1e6 * one.prediction.gemm_seconds / one.point.tokens for one in row]
        axes.plot(at, gemm, color="black", marker="D", markersize=5, linestyle="none", label="GEMM")
        high = max(max(gemm), bottom.max())
        axes.set_ylim(0, 1.15 * high)
        if axis in ("hidden size", "tokens"):  # orders of magnitude: a bar as a share of GEMM's time
            _relative(axes, at, row)
        axes.set_xticks(at, [position(axis, one.point) for one in row], rotation=45)
        axes.set_title(axis)
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(f"{machine.name}: microseconds a token (hidden size and tokens: in times of GEMM's)")
    save(figure, path)


def _relative(axes: Axes, at: np.ndarray, row: Sequence[Projected]) -> None:
    axes.clear()
    bottom = np.zeros(len(row))
    for part, colour in zip(row[0].prediction.lookup, COLOURS, strict=False):
        values = np.array([one.prediction.lookup[part] / one.prediction.gemm_seconds for one in row])
        axes.bar(at, values, bottom=bottom, color=colour, label=part, width=0.7)
        bottom += values
    axes.axhline(1, color="black", label="GEMM")
    axes.set_ylim(0, max(1.15, min(3.0, 1.1 * bottom.max())))


def plot_grid(point: Point, machine: Machine, path: Path) -> None:
    """The ratio to GEMM over hidden size and tokens in each precision, with the line of break-even."""
    figure = new_figure(15, 4.6)
    for axes, precision in zip(figure.subplots(1, len(TYPES)), TYPES, strict=True):
        ratios = np.log2(np.array(grid(point, machine, precision)))
        image = axes.imshow(ratios, origin="lower", cmap="RdBu", norm=TwoSlopeNorm(0, -_FAR, _FAR), aspect="auto")
        for i, row in enumerate(ratios):
            for j, value in enumerate(row):
                axes.text(j, i, f"{2**value:.2g}", ha="center", va="center", fontsize=7)
        if ratios.min() < 0 < ratios.max():
            axes.contour(ratios, levels=[0], colors="black", linewidths=1.5)
        axes.set_xticks(range(len(TOKENS)), [f"{tokens:,}" for tokens in TOKENS], rotation=45)
        axes.set_yticks(range(len(SIZES)), map(str, SIZES))
        axes.set(xlabel="tokens a call", ylabel="hidden size", title=precision)
    bar = figure.colorbar(image, ax=figure.axes, ticks=[-3, -2, -1, 0, 1, 2, 3])
    bar.ax.set_yticklabels(["1/8", "1/4", "1/2", "1", "2", "4", "8"])
    figure.suptitle(f"{machine.name}, {point.threads} threads: times faster than GEMM; the line is break-even")
    save(figure, path)


def plot_machines(point: Point, machines: Sequence[Machine], path: Path) -> None:
    """Where lookups win: the best lookup against the best GEMM of each machine, at few and many tokens.

    Args:
        point: the recipe; it is resized in proportion.
        machines: real ones first, then hypothetical ones.
        path: PNG to write.
    """
    sizes = (512, 1024, 2048)
    columns = [(d, tokens) for tokens, _ in _SCENES for d in sizes]
    found = [
        [best(replace(resized(point, d), tokens=tokens, threads=machine.cores), machine) for d, tokens in columns]
        for machine in machines
    ]
    ratios = np.log2([[one.ratio for one in row] for row in found])
    figure = new_figure(13, 0.5 * len(machines) + 2)
    axes = figure.subplots()
    image = axes.imshow(ratios, cmap="RdBu", norm=TwoSlopeNorm(0, -_FAR, _FAR), aspect="auto")
    for i, row in enumerate(found):
        for j, one in enumerate(row):
            colour = "white" if abs(ratios[i, j]) > 0.7 * _FAR else "black"
            axes.text(j, i, f"{one.ratio:.2g}\n{one.binding}", ha="center", va="center", fontsize=7, color=colour)
    labels = [f"{machine.name}" + (" *" if machine.kind == "hypothetical" else "") for machine in machines]
    axes.set_yticks(range(len(machines)), labels, fontsize=8)
    scenes = dict(_SCENES)
    axes.set_xticks(range(len(columns)), [f"d {d}\n{scenes[tokens]}" for d, tokens in columns], fontsize=8)
    for edge in (len(sizes) - 0.5, 2 * len(sizes) - 0.5):
        axes.axvline(edge, color="white", linewidth=3)
    real = sum(machine.kind != "hypothetical" for machine in machines)
    if 0 < real < len(machines):
        axes.axhline(real - 0.5, color="black", linewidth=1)
    bar = figure.colorbar(image, ax=axes, ticks=[-3, -2, -1, 0, 1, 2, 3])
    bar.ax.set_yticklabels(["1/8", "1/4", "1/2", "1", "2", "4", "8"])
    axes.set_title(
        "times faster than GEMM, all cores, each in its fastest precision; what binds the lookup (* does not exist)",
        fontsize=10,
    )
    save(figure, path)
