"""Figures: predicted against measured time, where lookups win, one machine over shapes, and all machines at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from PIL import Image

from lookupffn.profiling.explain import Prediction
from lookupffn.profiling.machine import TYPES, Machine
from lookupffn.profiling.points import Measured
from lookupffn.profiling.project import SIZES, TOKENS, Projected, best, grid, position, resized
from lookupffn.profiling.timing import Point

# Okabe and Ito's colours, which colour-blind people can tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
_BAND = 0.35
_FAR = 3.0  # doublings at which colours end
_SCENES = ((1, "1 token"), (128, "128 tokens"), (8192, "8,192 tokens"))


def new_figure(width: float, height: float) -> Figure:
    """A figure that no window system knows of."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Writes a small PNG of at most 128 colours; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    image.quantize(128).save(path, optimize=True)


def plot_check(
    measured: Sequence[Measured], predicted: Sequence[Prediction], path: Path, title: str, held_out: Sequence[bool]
) -> None:
    """Predicted against measured: whole feed-forwards, how many times faster than GEMM, a lookup's parts, GEMM's parts.

    Args:
        measured: points.
        predicted: for each.
        path: PNG to write.
        title: the machine, for instance.
        held_out: of each point, whether the model was made without it; those are filled.
    """
    figure = new_figure(11, 10.4)
    (whole, faster), (lookup, gemm) = figure.subplots(2, 2)
    held = np.array(held_out, dtype=bool)
    totals = {
        "lookup": [(1e6 * m.lookup, 1e6 * p.lookup_seconds) for m, p in zip(measured, predicted, strict=True)],
        "GEMM": [(1e6 * m.gemm, 1e6 * p.gemm_seconds) for m, p in zip(measured, predicted, strict=True)],
    }
    _scatter(whole, totals, held)
    whole.set_title("whole feed-forwards")
    ratios = [(m.gemm / m.lookup, p.ratio) for m, p in zip(measured, predicted, strict=True)]
    _scatter(faster, {"lookup against GEMM": ratios}, held)
    faster.axhline(1, color="0.3", linewidth=1)
    faster.axvline(1, color="0.3", linewidth=1)
    faster.set_title("times as fast as GEMM; top left, bottom right: the wrong one", fontsize=11)
    for axes, name, parts_of in ((lookup, "lookup, by part", "lookup"), (gemm, "GEMM, by part", "gemm")):
        pairs: dict[str, list[tuple[float, float]]] = {}
        for one, prediction in zip(measured, predicted, strict=True):
            for part, seconds in getattr(prediction, parts_of).items():
                if part == "call":  # what belongs to no part is sampled as the call
                    continue
                pairs.setdefault(part, []).append((1e6 * one.parts.get(part, 0.0), 1e6 * seconds))
        # what takes less than a microsecond is seldom sampled
        _scatter(axes, {part: found for part, found in pairs.items() if any(m > 0 for m, _ in found)}, held, least=2.0)
        axes.set_title(name)
    figure.suptitle(f"{title}: microseconds a call, and ratios; filled: held out; grey: within {_BAND:.0%}")
    save(figure, path)


def _scatter(
    axes: Axes, pairs: Mapping[str, Sequence[tuple[float, float]]], held: np.ndarray, least: float = 0.0
) -> None:
    values = [value for found in pairs.values() for pair in found for value in pair if value > least]
    low, high = min(values) / 1.5, max(values) * 1.5
    ends = np.array([low, high])
    axes.fill_between(ends, ends * (1 - _BAND), ends * (1 + _BAND), color="0.9", zorder=0)
    axes.plot(ends, ends, color="0.5", linewidth=0.8, zorder=1)
    for (name, found), colour, marker in zip(pairs.items(), COLOURS, MARKERS, strict=False):
        array = np.maximum(np.array(found), low)
        for chosen, face in ((held, colour), (~held, "none")):
            shown = array[chosen & (np.array(found)[:, 0] > least)]
            axes.scatter(
                shown[:, 0],
                shown[:, 1],
                s=20,
                marker=marker,
                edgecolors=colour,
                facecolors=face,
                linewidths=0.9,
                label=name if face != "none" or not held.any() else None,
            )
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), xlabel="measured", ylabel="predicted")
    axes.legend(loc="upper left", frameon=False)


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
