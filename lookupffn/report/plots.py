"""The plots of a comparison: perplexity against what it costs, and the curves of training.

One colour and marker a feed-forward, the same in every plot; its variants differ by line style and are named where
they stand. Colours are Okabe and Ito's, which colour-blind people can tell apart, and two of Tol's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import fill

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, FixedLocator, Formatter, FuncFormatter, MaxNLocator, NullLocator

from lookupffn.report.figures import HORIZON, Comparison, Row
from lookupffn.report.labels import SIZE, Label, at_ends, beside_points
from lookupffn.report.runs import Run, Validation, perplexity

PLOTS = ("perplexity-flops", "perplexity-cpu", "perplexity-training-flops", "validation-loss")
FORMATS = ("png", "svg")
# the references look the same in every comparison
_FIXED = {"gemm": ("#000000", "s"), "lookup": ("#D55E00", "o"), "none": ("#777777", "x")}
_COLOURS = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#999933")
_MARKERS = ("^", "D", "v", "P", "*", "X", "<", ">", "p", "h")
_LINES = ("-", "--", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (1.5, 1)))
_GREY = "#999999"
_SPREAD = "standard deviation over seeds"
# with more points than this they get numbers and a key
_MOST_NAMED = 12
_KEY_CHARACTERS = 64  # a line
# perplexities up to this many times the worst final one are drawn on the way down
_WORST_SHOWN = 3
# svg.hashsalt: the same input gives the same file
_STYLE = {"svg.hashsalt": "lookupffn", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
_DPI = 150

Style = tuple[str, str]


def styles(names: Sequence[str]) -> dict[str, Style]:
    """A colour and a marker for each feed-forward.

    Args:
        names: of all feed-forwards of all groups, so that each looks the same in all.
    """
    others = sorted(set(names) - set(_FIXED))
    drawn = {name: (_COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)]) for i, name in enumerate(others)}
    return {**{name: style for name, style in _FIXED.items() if name in names}, **drawn}


def draw(comparison: Comparison, folder: Path, looks: Mapping[str, Style]) -> list[str]:
    """Draws what there are figures for, as PNG and SVG.

    Args:
        comparison: the figures.
        folder: where the files go.
        looks: see ``styles``.

    Returns:
        Names of the files.
    """
    files = []
    with matplotlib.rc_context(_STYLE):
        for name, figure in zip(PLOTS, (_flops, _cpu, _training_flops, _loss), strict=True):
            drawn = figure(comparison, looks)
            if drawn is None:
                continue
            for suffix in FORMATS:
                drawn.savefig(folder / f"{name}.{suffix}", dpi=_DPI, metadata={"Date": None} if suffix == "svg" else {})
                files.append(f"{name}.{suffix}")
    return files


def _flops(comparison: Comparison, looks: Mapping[str, Style]) -> Figure:
    return _trade(
        comparison, looks, lambda row: row.flops, lambda row: row.flops_front,
        "feed-forward FLOPs a token, all layers", EngFormatter(sep=""),
    )  # fmt: skip


def _cpu(comparison: Comparison, looks: Mapping[str, Style]) -> Figure | None:
    if comparison.latency is None:
        return None
    return _trade(
        comparison, looks, lambda row: row.cpu_us, lambda row: row.cpu_front,
        f"feed-forward CPU time a token, all layers (µs; {comparison.latency})", FuncFormatter(_plain),
    )  # fmt: skip


def _trade(
    comparison: Comparison,
    looks: Mapping[str, Style],
    cost: Callable[[Row], float | None],
    on_front: Callable[[Row], bool | None],
    xlabel: str,
    ticks: Formatter,
) -> Figure:
    """Perplexity against a cost: a point a variant, a line a feed-forward, and the Pareto front."""
    rows = [row for row in comparison.rows if cost(row) is not None]
    # no feed-forward costs nothing, which a log axis does not have: it is a line across
    points = [row for row in rows if row.ffn != "none" and cost(row) > 0]
    numbered = len(points) > _MOST_NAMED
    figure, axes = _axes(comparison, 10, 6.6)
    handles, lines = [], []
    for ffn in sorted({row.ffn for row in points}):
        colour, marker = looks[ffn]
        best: dict[float, float] = {}
        for row in (row for row in points if row.ffn == ffn):
            axes.errorbar(
                cost(row), row.perplexity.mean, yerr=row.perplexity.std, color=colour, marker=marker, markersize=6,
                capsize=2.5, elinewidth=1, linestyle="none", zorder=4,
            )  # fmt: skip
            lines.append(Line2D([cost(row)] * 2, _extent(row), transform=axes.transData))
            # of several learning rates at one cost, the best is the feed-forward's curve
            best[cost(row)] = min(row.perplexity.mean, best.get(cost(row), row.perplexity.mean))
        lines += axes.plot(*zip(*sorted(best.items()), strict=True), color=colour, linewidth=1, alpha=0.45, zorder=3)
        handles.append(Line2D([], [], color=colour, marker=marker, label=ffn, linewidth=1))
    _log_axes(axes, [cost(row) for row in points], [end for row in rows for end in _extent(row)], room=0.12)
    axes.xaxis.set_major_formatter(ticks)
    axes.set(xlabel=f"{xlabel}, log scale", ylabel="validation perplexity (masked tokens), log scale")
    for row in rows:
        if row not in points:
            colour = looks[row.ffn][0]
            lines.append(axes.axhline(row.perplexity.mean, color=colour, linestyle=":", linewidth=1.2, zorder=2))
            handles.append(Line2D([], [], color=colour, linestyle=":", label=f"{row.label}: no feed-forward"))
    front = sorted((cost(row), row.perplexity.mean) for row in points if on_front(row))
    if front:
        stairs = [*front, (axes.get_xlim()[1], front[-1][1])]
        lines += axes.step(
            *zip(*stairs, strict=True), where="post", color=_GREY, linewidth=5, alpha=0.35, zorder=1,
            solid_capstyle="butt",
        )  # fmt: skip
        handles.append(Line2D([], [], color=_GREY, linewidth=5, alpha=0.35, label="Pareto front"))
    if any(row.perplexity.std is not None for row in rows):
        handles.append(Line2D([], [], color="black", marker="|", markersize=10, linestyle="none", label=_SPREAD))
    _legend(figure, handles)
    if numbered:
        _key(figure, points, looks)
    figure.draw_without_rendering()
    names = [str(row.number) if numbered else row.label for row in points]
    beside_points(
        figure,
        axes,
        [Label(cost(r), r.perplexity.mean, name, looks[r.ffn][0]) for r, name in zip(points, names, strict=True)],
        lines,
    )
    return figure


def _key(figure: Figure, rows: Sequence[Row], looks: Mapping[str, Style]) -> None:
    """What the numbers in a plot mean; they are those of the table. The figure grows by what the key takes."""
    handles = [
        Line2D(
            [], [], color=looks[r.ffn][0], marker=looks[r.ffn][1], linestyle="none",
            label=fill(f"{r.number}  {r.label}", _KEY_CHARACTERS, subsequent_indent="    "),
        )
        for r in rows
    ]  # fmt: skip
    legend = figure.legend(
        handles=handles, loc="outside right upper", frameon=False, fontsize=SIZE, title="numbers as in table.md",
        title_fontsize=SIZE, alignment="left", handletextpad=0.2, labelspacing=0.45, markerscale=0.8,
    )  # fmt: skip
    size = legend.get_window_extent(figure.canvas.get_renderer())
    width, height = figure.get_size_inches()
    figure.set_size_inches(width + size.width / figure.dpi, max(height, size.height / figure.dpi + 0.5))


def _numbers(ends: Sequence[Label], curves: Sequence[Curve]) -> list[Label]:
    """The labels with the numbers of the key for texts."""
    return [replace(end, text=str(curve.row.number)) for end, curve in zip(ends, curves, strict=True)]


def _extent(row: Row) -> tuple[float, float]:
    error = row.perplexity.std or 0.0
    return row.perplexity.mean - error, row.perplexity.mean + error


def _training_flops(comparison: Comparison, looks: Mapping[str, Style]) -> Figure | None:
    """Perplexity on the way against what the way has cost."""
    curves = _curves(comparison, lambda point: point.training_flops, perplexity)
    if not curves:
        return None
    numbered = len(curves) > _MOST_NAMED
    figure, axes = _axes(comparison, 10 if numbered else 11, 6.6)
    ends = _lines(axes, curves, looks)
    # the way down from the plateau is the same for all and would take most of the plot
    highest = _WORST_SHOWN * max(curve.mean[-1] for curve in curves)
    shown = [(x, y) for curve in curves for x, y in zip(curve.x, curve.mean, strict=True) if y <= highest]
    _log_axes(axes, [x for x, _ in shown], [y for _, y in shown], room=0.03)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set(
        xlabel="training FLOPs so far, forward and backward of the whole model, log scale",
        ylabel="validation perplexity (masked tokens), log scale",
    )
    _legend(figure, _band(curves))
    if numbered:
        _key(figure, [curve.row for curve in curves], looks)
    figure.draw_without_rendering()
    if numbered:
        beside_points(figure, axes, _numbers(ends, curves), axes.get_lines())
    else:
        at_ends(figure, axes, ends)
    return figure


def _loss(comparison: Comparison, looks: Mapping[str, Style]) -> Figure | None:
    """Validation loss against tokens: the whole run with the plateau and its end, and the second half enlarged."""
    curves = _curves(comparison, lambda point: point.tokens, lambda loss: loss)
    if not curves:
        return None
    numbered = len(curves) > _MOST_NAMED
    figure, whole, late = _two_axes(comparison)
    _lines(whole, curves, looks)
    handles = _plateau(whole, comparison, curves, looks)
    ends = _lines(late, curves, looks)
    half = comparison.group.conditions["tokens"] / 2
    shown = [y for c in curves for x, y in zip(c.x, c.mean, strict=True) if x >= half or x == c.x[-1]]
    room = 0.05 * max(max(shown) - min(shown), 0.02)
    late.set(xlim=(half, None), ylim=(min(shown) - room, max(shown) + room))
    whole.set(xlim=(0, None), ylabel="validation loss (nats a masked token)")
    for axes in (whole, late):
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set(xlabel="tokens trained on")
    _legend(figure, [*handles, *_band(curves)])
    if numbered:
        _key(figure, [curve.row for curve in curves], looks)
        ends = _numbers(ends, curves)
    figure.draw_without_rendering()
    at_ends(figure, late, ends)
    return figure


def _plateau(axes: Axes, comparison: Comparison, curves: Sequence[Curve], looks: Mapping[str, Style]) -> list[Line2D]:
    """Marks the unigram loss, the exits, and from where on a race may be read; returns what the legend says of it."""
    unigram = comparison.group.runs[0].summary["unigram_loss"]
    axes.axhline(unigram, color=_GREY, linestyle=":", linewidth=1.5)
    handles = [Line2D([], [], color=_GREY, linestyle=":", label=f"unigram loss ({unigram:.2f} nats)")]
    hollow = {"marker": "o", "markersize": 8, "markerfacecolor": "none", "linestyle": "none"}
    exits = [(curve.row.exit_tokens, curve) for curve in curves if curve.row.exit_tokens is not None]
    for tokens, curve in exits:
        loss = np.interp(tokens, curve.x, curve.mean)
        axes.plot(tokens, loss, color=looks[curve.row.ffn][0], zorder=5, **hollow)
    if exits:
        handles.append(Line2D([], [], color="black", label="plateau left (slowest seed)", **hollow))
    if comparison.horizon is not None and comparison.horizon >= HORIZON:
        slowest = comparison.group.conditions["tokens"] / comparison.horizon
        axes.axvline(HORIZON * slowest, color=_GREY, linewidth=1, zorder=1)
        handles.append(Line2D([], [], color=_GREY, linewidth=1, label=f"{HORIZON} times the slowest exit"))
    return handles


class Curve:
    """The validations of a variant, over its seeds.

    Attributes:
        row: the variant.
        x: [N] tokens or FLOPs.
        mean: [N] mean over seeds.
        std: [N] sample standard deviation; None with one seed.
    """

    def __init__(
        self, row: Row, runs: Sequence[Run], across: Callable[[Validation], float], up: Callable[[float], float]
    ) -> None:
        self.row = row
        fewest = min(runs, key=lambda run: len(run.curve))
        self.x = np.array([across(point) for point in fewest.curve])
        values = np.array(
            [np.interp(self.x, [across(p) for p in run.curve], [up(p.loss) for p in run.curve]) for run in runs]
        )
        self.mean = values.mean(0)
        self.std = values.std(0, ddof=1) if len(runs) > 1 else None


def _curves(comparison: Comparison, across: Callable[[Validation], float], up: Callable[[float], float]) -> list[Curve]:
    """One for each variant that has validated."""
    found = []
    for row in comparison.rows:
        runs = [run for run in row.variant.runs if run.curve]
        if runs:
            found.append(Curve(row, runs, across, up))
    return found


def _lines(axes: Axes, curves: Sequence[Curve], looks: Mapping[str, Style]) -> list[Label]:
    """Draws the curves; returns labels for their ends."""
    ends, drawn = [], dict.fromkeys((curve.row.ffn for curve in curves), 0)
    for curve in curves:
        ffn = curve.row.ffn
        colour, marker = looks[ffn]
        line = _LINES[drawn[ffn] % len(_LINES)]
        drawn[ffn] += 1
        axes.plot(curve.x, curve.mean, color=colour, linestyle=line, linewidth=1.3, zorder=3)
        axes.plot(curve.x[-1:], curve.mean[-1:], color=colour, marker=marker, markersize=5, zorder=4)
        if curve.std is not None:
            axes.fill_between(
                curve.x, curve.mean - curve.std, curve.mean + curve.std, color=colour, alpha=0.15, linewidth=0
            )
        ends.append(Label(curve.x[-1], curve.mean[-1], curve.row.label, colour))
    return ends


def _axes(comparison: Comparison, width: float, height: float) -> tuple[Figure, Axes]:
    figure = _figure(width, height)
    axes = _prepared(figure.add_subplot())
    axes.set_title(describe(comparison), fontsize=9, loc="left")
    return figure, axes


def _two_axes(comparison: Comparison) -> tuple[Figure, Axes, Axes]:
    figure = _figure(13.5, 6.6)
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    _prepared(left).set_title(describe(comparison), fontsize=9, loc="left")
    _prepared(right).set_title("second half, enlarged", fontsize=9, loc="right")
    return figure, left, right


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _prepared(axes: Axes) -> Axes:
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def describe(comparison: Comparison) -> str:
    """What all runs of a comparison share, in a line."""
    conditions, summary = comparison.group.conditions, comparison.group.runs[0].summary
    return (
        f"{summary['model']} ({conditions.get('model.num_hidden_layers')} layers of "
        f"{conditions.get('model.hidden_size')}), {summary['data']}, sequences of "
        f"{conditions.get('sequence_length')}, {conditions['tokens']:,.0f} tokens trained"
    )


def _legend(figure: Figure, handles: list) -> None:
    if handles:
        figure.legend(handles=handles, loc="outside lower left", ncols=min(6, len(handles)), frameon=False, fontsize=8)


def _band(curves: Sequence[Curve]) -> list[Patch]:
    banded = any(curve.std is not None for curve in curves)
    return [Patch(color=_GREY, alpha=0.35, label=_SPREAD)] if banded else []


def _log_axes(axes: Axes, across: Sequence[float], up: Sequence[float], room: float) -> None:
    """Logarithmic, with ticks at round numbers however little the axes span; ``room`` is a share of the width."""
    axes.set(xscale="log", yscale="log")
    _limits(axes.xaxis, axes.set_xlim, across, room)
    _limits(axes.yaxis, axes.set_ylim, up, 0.06)
    axes.yaxis.set_major_formatter(FuncFormatter(_plain))


def _limits(axis: Axis, limit: Callable[[float, float], object], values: Sequence[float], room: float) -> None:
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


def _plain(value: float, position: int | None = None) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
