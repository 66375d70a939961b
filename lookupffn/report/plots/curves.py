"""The course of training: loss against tokens, and perplexity against what training has cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from lookupffn.report.comparison import HORIZON, Comparison, Row
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
    look,
    new_figure,
    one_axes,
    with_grid,
)
from lookupffn.report.runs import Validation, perplexity

# perplexities up to this many times the worst final one are drawn on the way down
_WORST_SHOWN = 3


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
