"""The course of training: loss against tokens, within a run and over several horizons; perplexity against its cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from lookupffn.report.comparison import HORIZON, Comparison, Row
from lookupffn.report.horizons import Climb, Ladder
from lookupffn.report.loss_curves import MeanCurve, mean_training, mean_validation
from lookupffn.report.plots.labels import Label, at_ends, beside_points
from lookupffn.report.plots.style import (
    GREY,
    LINES,
    MOST_NAMED,
    band,
    describe,
    key,
    legend,
    log_axes,
    log_limits,
    look,
    new_figure,
    one_axes,
    with_grid,
)
from lookupffn.report.runs import Validation, perplexity

# perplexities up to this many times the worst final one are drawn on the way down
_WORST_SHOWN = 3
# how far a fitted curve is drawn beyond the longest horizon
_BEYOND = 4.0


@dataclass(frozen=True)
class _Curve:
    """A variant's curve, and the dashes that tell it from its feed-forward's other variants."""

    row: Row
    values: MeanCurve
    dashes: object

    @property
    def end(self) -> Label:
        """Where its last point is."""
        return Label(self.values.x[-1], self.values.mean[-1], self.row.label, look(self.row.ffn)[0])


def training_flops(comparison: Comparison) -> Figure | None:
    """Perplexity on the way against what the way has cost."""
    curves = _validations(comparison, lambda point: point.training_flops, perplexity)
    if not curves:
        return None
    numbered = len(curves) > MOST_NAMED
    figure, axes = one_axes(comparison, 10 if numbered else 11, 6.6)
    for curve in curves:
        _draw(axes, curve)
    # the way down from the plateau is the same for all and would take most of the plot
    highest = _WORST_SHOWN * max(curve.values.mean[-1] for curve in curves)
    shown = [(x, y) for c in curves for x, y in zip(c.values.x, c.values.mean, strict=True) if y <= highest]
    log_axes(axes, [x for x, _ in shown], [y for _, y in shown], room=0.03)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set(
        xlabel="training FLOPs so far, forward and backward of the whole model, log scale",
        ylabel="validation perplexity (masked tokens), log scale",
    )
    legend(figure, band(_banded(curves)))
    if numbered:
        key(figure, [curve.row for curve in curves])
    figure.draw_without_rendering()
    if numbered:
        beside_points(figure, axes, _ends(curves), axes.get_lines())
    else:
        at_ends(figure, axes, _ends(curves))
    return figure


def loss(comparison: Comparison) -> Figure | None:
    """Loss against tokens: the whole run from its first step, and the second half of the validations enlarged."""
    curves = _validations(comparison, lambda point: point.tokens, lambda loss: loss)
    if not curves:
        return None
    numbered = len(curves) > MOST_NAMED
    figure = new_figure(13.5, 6.6)
    whole, late = map(with_grid, figure.subplots(1, 2, width_ratios=(2, 3)))
    whole.set_title(describe(comparison.group.conditions, comparison.group.runs[0].summary), fontsize=9, loc="left")
    late.set_title("validation loss, second half, enlarged", fontsize=9, loc="right")
    handles = _training(whole, curves)
    for curve in curves:
        _draw(whole, curve)
        _draw(late, curve)
    handles += _plateau(whole, comparison, curves)
    half = comparison.group.conditions["tokens"] / 2
    points = [(x, y) for curve in curves for x, y in zip(curve.values.x, curve.values.mean, strict=True)]
    last = max(x for x, _ in points)
    shown = [y for x, y in points if x >= half or x == last]
    room = 0.05 * max(max(shown) - min(shown), 0.02)
    late.set(xlim=(half, None), ylim=(min(shown) - room, max(shown) + room))
    whole.set(xlim=(0, None), ylabel="loss (nats a masked token)")
    for axes in (whole, late):
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set(xlabel="tokens trained on")
    legend(figure, [*handles, *band(_banded(curves))])
    if numbered:
        key(figure, [curve.row for curve in curves])
    figure.draw_without_rendering()
    at_ends(figure, late, _ends(curves))
    return figure


def _validations(
    comparison: Comparison, across: Callable[[Validation], float], up: Callable[[float], float]
) -> list[_Curve]:
    """One for each variant that has validated."""
    curves, drawn = [], dict.fromkeys((row.ffn for row in comparison.rows), 0)
    for row in comparison.rows:
        values = mean_validation(row.variant.runs, across, up)
        if values is not None:
            curves.append(_Curve(row, values, LINES[drawn[row.ffn] % len(LINES)]))
            drawn[row.ffn] += 1
    return curves


def _draw(axes: Axes, curve: _Curve) -> None:
    colour, marker = look(curve.row.ffn)
    x, mean, std = curve.values.x, curve.values.mean, curve.values.std
    axes.plot(x, mean, color=colour, linestyle=curve.dashes, linewidth=1.3, zorder=3)
    axes.plot(x[-1:], mean[-1:], color=colour, marker=marker, markersize=5, zorder=4)
    if std is not None:
        axes.fill_between(x, mean - std, mean + std, color=colour, alpha=0.15, linewidth=0)


def _training(axes: Axes, curves: Sequence[_Curve]) -> list[Line2D]:
    """Training losses as thin lines; returns what the legend says of them."""
    handles = [Line2D([], [], color="black", linewidth=1.3, label="validation")]
    drawn = False
    for curve in curves:
        values = mean_training(curve.row.variant.runs)
        if values is not None:
            axes.plot(values.x, values.mean, color=look(curve.row.ffn)[0], linewidth=0.6, alpha=0.5, zorder=2)
            drawn = True
    return (
        [
            *handles,
            Line2D(
                [], [], color="black", linewidth=0.6, alpha=0.5, label="training (means over a fortieth of the run)"
            ),
        ]
        if drawn
        else []
    )


def _plateau(axes: Axes, comparison: Comparison, curves: Sequence[_Curve]) -> list[Line2D]:
    """Marks the unigram loss, the exits, and from where on a race may be read; returns what the legend says of it."""
    unigram = comparison.group.runs[0].summary["unigram_loss"]
    axes.axhline(unigram, color=GREY, linestyle=":", linewidth=1.5)
    handles = [Line2D([], [], color=GREY, linestyle=":", label=f"unigram loss ({unigram:.2f} nats)")]
    hollow = {"marker": "o", "markersize": 8, "markerfacecolor": "none", "linestyle": "none"}
    exits = [(curve.row.exit_tokens, curve) for curve in curves if curve.row.exit_tokens is not None]
    for tokens, curve in exits:
        height = np.interp(tokens, curve.values.x, curve.values.mean)
        axes.plot(tokens, height, color=look(curve.row.ffn)[0], zorder=5, **hollow)
    if exits:
        handles.append(Line2D([], [], color="black", label="plateau left (slowest seed)", **hollow))
    falls = [(curve.row.second_fall_tokens, curve) for curve in curves if curve.row.second_fall_tokens is not None]
    for tokens, curve in falls:
        height = np.interp(tokens, curve.values.x, curve.values.mean)
        axes.plot(tokens, height, color=look(curve.row.ffn)[0], zorder=5, **{**hollow, "marker": "D"})
    if falls:
        handles.append(Line2D([], [], color="black", label="second fall (slowest seed)", **{**hollow, "marker": "D"}))
    if comparison.horizon is not None and comparison.horizon >= HORIZON:
        slowest = comparison.group.conditions["tokens"] / comparison.horizon
        axes.axvline(HORIZON * slowest, color=GREY, linewidth=1, zorder=1)
        handles.append(Line2D([], [], color=GREY, linewidth=1, label=f"{HORIZON} times the slowest exit"))
    return handles


def _banded(curves: Sequence[_Curve]) -> bool:
    return any(curve.values.std is not None for curve in curves)


def _ends(curves: Sequence[_Curve]) -> list[Label]:
    """Labels for the ends: names, or the numbers of the key where there are many."""
    if len(curves) <= MOST_NAMED:
        return [curve.end for curve in curves]
    return [replace(curve.end, text=str(curve.row.number)) for curve in curves]


def final_losses(ladder: Ladder) -> Figure:
    """Final losses and fitted curves on the left, differences to GEMM with their 95% intervals on the right."""
    first = ladder.comparisons[0].group
    horizons = [comparison.group.conditions["tokens"] for comparison in ladder.comparisons]
    conditions = {name: value for name, value in first.conditions.items() if name != "tokens"}
    figure = new_figure(13.5, 6.6)
    left, right = map(with_grid, figure.subplots(1, 2))
    left.set_title(describe(conditions, first.runs[0].summary), fontsize=9, loc="left")
    ends, differences, drawn = [], [], dict.fromkeys((climb.ffn for climb in ladder.climbs), 0)
    fitted = any(climb.law is not None for climb in ladder.climbs)
    for number, climb in enumerate(ladder.climbs):
        colour, marker = look(climb.ffn)
        dashes = LINES[drawn[climb.ffn] % len(LINES)]
        drawn[climb.ffn] += 1
        x, y = [step.tokens for step in climb.steps], [step.row.loss.mean for step in climb.steps]
        error = [step.row.loss.std or 0.0 for step in climb.steps]
        dodge = 1.012 ** (number - len(ladder.climbs) / 2)
        style = {"color": colour, "marker": marker, "markersize": 5, "capsize": 2.5, "elinewidth": 1}
        if climb.law is None:
            left.errorbar(x, y, error, linestyle=dashes, linewidth=1, **style)
        else:
            left.errorbar(x, y, error, linestyle="none", **style)
            grid = np.geomspace(x[0], x[-1] * _BEYOND, 100)
            left.plot(grid, climb.law.loss(grid), color=colour, linestyle=dashes, linewidth=1)
        ends.append(Label(x[-1], y[-1], climb.label, colour))
        differences += _difference(right, climb, dodge, style, dashes)
    for axes, limits in ((left, [*horizons, horizons[-1] * _BEYOND] if fitted else horizons), (right, horizons)):
        axes.set(xscale="log", xlabel="tokens trained on, log scale")
        log_limits(axes.xaxis, axes.set_xlim, limits, 0.06)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    left.set(ylabel="final validation loss (nats a masked token)")
    right.axhline(0.0, color=GREY, linewidth=1)
    right.set(ylabel="less gemm's (nats), paired seeds, 95% interval")
    handles = [Line2D([], [], color=look(n)[0], marker=look(n)[1], label=n, linewidth=1) for n in sorted(drawn)]
    if fitted:
        handles.append(Line2D([], [], color="black", linewidth=1, label="E + A D^-beta"))
    legend(figure, handles)
    figure.draw_without_rendering()
    at_ends(figure, right, differences)
    if not differences:
        at_ends(figure, left, ends)
    return figure


def _difference(axes: Axes, climb: Climb, dodge: float, style: dict, dashes: object) -> list[Label]:
    """Draws a variant's differences, its points moved aside by a factor so that intervals can be told apart."""
    steps = [step for step in climb.steps if step.against is not None]
    if not steps:
        return []
    middle = np.array([step.against.mean for step in steps])
    bounds = [(s.against.mean, s.against.mean) if s.against.low is None else (s.against.low, s.against.high)
              for s in steps]  # fmt: skip
    errors = np.abs(np.array(bounds).T - middle)
    x = [dodge * step.tokens for step in steps]
    axes.errorbar(x, middle, errors, linestyle=dashes, linewidth=1, **style)
    return [Label(x[-1], middle[-1], climb.label, style["color"])]
