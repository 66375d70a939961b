"""How plots look: a colour and a marker for each feed-forward, axes, legends, the key of numbered variants."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from lookupffn.report.comparison import Comparison, Row
from lookupffn.report.plots.labels import SIZE

# svg.hashsalt: the same input gives the same file
RC = {"svg.hashsalt": "lookupffn", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
DPI = 150
GREY = "#999999"
LINES = ("-", "--", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (1.5, 1)))
SPREAD = "standard deviation over seeds"
# with more points than this they get numbers and a key
MOST_NAMED = 12
_KEY_CHARACTERS = 64  # a line

# Okabe's and Ito's colours and Tol's, which colour-blind people can tell apart
_OWN = {
    "gemm": ("#000000", "s"),
    "lookup": ("#D55E00", "o"),
    "none": ("#777777", "x"),
    "fff": ("#0072B2", "^"),
    "low_rank": ("#009E73", "D"),
    "mongoose": ("#CC79A7", "v"),
    "product_key": ("#E69F00", "P"),
    "shuffle": ("#56B4E9", "*"),
    "slide": ("#882255", "X"),
    "switch": ("#999933", "<"),
    "yoso": ("#332288", ">"),
}
_OTHER_COLOURS = ("#44AA99", "#AA4499", "#117733", "#661100", "#DDCC77", "#6699CC")
_OTHER_MARKERS = ("h", "p", "d", "8", "H")


def look(ffn: str) -> tuple[str, str]:
    """Colour and marker of a feed-forward, the same in every plot; for one that is not ours, drawn by its name."""
    if ffn in _OWN:
        return _OWN[ffn]
    number = int.from_bytes(hashlib.sha256(ffn.encode()).digest()[:8])
    colour, marker = number % len(_OTHER_COLOURS), number // len(_OTHER_COLOURS) % len(_OTHER_MARKERS)
    return _OTHER_COLOURS[colour], _OTHER_MARKERS[marker]


def new_figure(width: float, height: float) -> Figure:
    """A figure that lays itself out, in inches."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def with_grid(axes: Axes) -> Axes:
    """The axes, with a grid behind what is drawn."""
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def one_axes(comparison: Comparison, width: float, height: float) -> tuple[Figure, Axes]:
    """A figure with one plot, titled by what the runs share."""
    figure = new_figure(width, height)
    axes = with_grid(figure.add_subplot())
    axes.set_title(describe(comparison.group.conditions, comparison.group.runs[0].summary), fontsize=9, loc="left")
    return figure, axes


def describe(conditions: Mapping[str, object], summary: Mapping[str, object]) -> str:
    """What all runs of a comparison share, in a line."""
    tokens = conditions.get("tokens")
    return (
        f"{summary['model']} ({conditions.get('model.num_hidden_layers')} layers of "
        f"{conditions.get('model.hidden_size')}), {summary['data']}, sequences of {conditions.get('sequence_length')}"
        + ("" if tokens is None else f", {tokens:,.0f} tokens trained")
    )


def legend(figure: Figure, handles: list) -> None:
    """Below the plots."""
    if handles:
        figure.legend(handles=handles, loc="outside lower left", ncols=min(6, len(handles)), frameon=False, fontsize=8)


def band(shown: bool) -> list[Patch]:
    """What the legend says of bands around curves, if there are any."""
    return [Patch(color=GREY, alpha=0.35, label=SPREAD)] if shown else []


def key(figure: Figure, rows: Sequence[Row]) -> None:
    """What the numbers in a plot mean; they are those of the table. The figure grows by what the key takes."""
    handles = [
        Line2D(
            [], [], color=look(r.ffn)[0], marker=look(r.ffn)[1], linestyle="none",
            label=fill(f"{r.number}  {r.label}", _KEY_CHARACTERS, subsequent_indent="    "),
        )
        for r in rows
    ]  # fmt: skip
    drawn = figure.legend(
        handles=handles, loc="outside right upper", frameon=False, fontsize=SIZE, title="numbers as in table.md",
        title_fontsize=SIZE, alignment="left", handletextpad=0.2, labelspacing=0.45, markerscale=0.8,
    )  # fmt: skip
    size = drawn.get_window_extent(figure.canvas.get_renderer())
    width, height = figure.get_size_inches()
    figure.set_size_inches(width + size.width / figure.dpi, max(height, size.height / figure.dpi + 0.5))


def log_axes(axes: Axes, across: Sequence[float], up: Sequence[float], room: float) -> None:
    """Logarithmic, with ticks at round numbers however little the axes span; ``room`` is a share of the width."""
    axes.set(xscale="log", yscale="log")
    log_limits(axes.xaxis, axes.set_xlim, across, room)
    log_limits(axes.yaxis, axes.set_ylim, up, 0.06)
    axes.yaxis.set_major_formatter(FuncFormatter(plain))


def log_limits(axis: Axis, limit: Callable[[float, float], object], values: Sequence[float], room: float) -> None:
    """Limits of one logarithmic axis around some values, and its ticks."""
    low, high = min(values, default=1.0), max(values, default=1.0)
    beside = max((high / low) ** room, 1.02)
    low, high = low / beside, high * beside
    limit(low, high)
    if high / low < 3:
        ticks = MaxNLocator(7, steps=[1, 2, 5, 10]).tick_values(low, high)
    else:
        powers = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
        steps = [1, 1.5, 2, 3, 4, 5, 7] if high / low < 15 else [1, 2, 5] if high / low < 1e4 else [1]
        ticks = np.outer(powers, steps).ravel()
    axis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axis.set_minor_locator(NullLocator())


def plain(value: float, position: int | None = None) -> str:
    """A tick's number, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
