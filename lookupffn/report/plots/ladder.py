"""Loss against the horizon, and the difference to GEMM."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from lookupffn.report.horizons import Climb, Ladder
from lookupffn.report.plots.labels import Label, at_ends
from lookupffn.report.plots.style import GREY, LINES, describe, legend, log_limits, look, new_figure, with_grid

# how far a fitted curve is drawn beyond the longest horizon
_BEYOND = 4.0


def losses(ladder: Ladder) -> Figure:
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
