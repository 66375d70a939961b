"""Figures: predicted against measured time, and where lookups win."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from lookupffn.profiling.explain import Prediction
from lookupffn.profiling.points import Measured

# Okabe and Ito's colours, which colour-blind people can tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
_BAND = 0.35


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
    """Predicted against measured microseconds a call: whole feed-forwards, a lookup's parts, GEMM's parts.

    Args:
        measured: points.
        predicted: for each.
        path: PNG to write.
        title: the machine, for instance.
        held_out: of each point, whether the model was made without it; those are filled.
    """
    figure = new_figure(15, 5.2)
    whole, lookup, gemm = figure.subplots(1, 3)
    held = np.array(held_out, dtype=bool)
    totals = {
        "lookup": [(1e6 * m.lookup, 1e6 * p.lookup_seconds) for m, p in zip(measured, predicted, strict=True)],
        "GEMM": [(1e6 * m.gemm, 1e6 * p.gemm_seconds) for m, p in zip(measured, predicted, strict=True)],
    }
    _scatter(whole, totals, held)
    whole.set_title("whole feed-forwards")
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
    figure.suptitle(f"{title}: microseconds a call; filled: held out; grey: within {_BAND:.0%}")
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
