"""Downstream scores against perplexity and against what inference costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FuncFormatter

from lookupffn.report.downstream import Score
from lookupffn.report.plots.labels import Label, beside_points
from lookupffn.report.plots.style import legend, log_limits, look, new_figure, plain, with_grid


def scores(own: Sequence[Score]) -> Figure | None:
    """One task: median scores with their range, against each of perplexity, FLOPs and CPU time that is known.

    Models that were not pretrained are lines across. None where nothing is known to draw against.

    Args:
        own: of one task.
    """
    pretrained = [score for score in own if score.is_pretrained]
    panels: list[tuple[str, Callable[[Score], float | None], object]] = [
        (
            "validation perplexity of pretraining",
            lambda s: None if s.perplexity is None else s.perplexity.mean,
            FuncFormatter(plain),
        ),
        ("feed-forward FLOPs a token, all layers", lambda s: s.flops if s.flops > 0 else None, EngFormatter(sep="")),
        (
            "feed-forward CPU time a token (µs)",
            lambda s: None if s.time is None else s.time.us_per_token,
            FuncFormatter(plain),
        ),
    ]
    panels = [panel for panel in panels if any(panel[1](score) is not None for score in pretrained)]
    if not panels:
        return None
    figure = new_figure(1.5 + 6 * len(panels), 5.5)
    drawn = figure.subplots(1, len(panels), squeeze=False)[0]
    drawn[0].set_title(f"{own[0].task}: median over seeds, lowest and highest", fontsize=9, loc="left")
    for axes, (label, across, ticks) in zip(drawn, panels, strict=True):
        _panel(with_grid(axes), own, across)
        axes.xaxis.set_major_formatter(ticks)
        axes.set(xlabel=f"{label}, log scale")
    drawn[0].set(ylabel="validation score (%)")
    names = sorted({score.ffn for score in pretrained})
    handles = [Line2D([], [], color=look(n)[0], marker=look(n)[1], label=n, linestyle="none") for n in names]
    if len(pretrained) < len(own):
        handles.append(Line2D([], [], color="black", linestyle=":", label="not pretrained (in its colour)"))
    legend(figure, handles)
    figure.draw_without_rendering()
    for axes, (_, across, _) in zip(drawn, panels, strict=True):
        labels = [Label(across(s), 100 * s.median, s.label, look(s.ffn)[0]) for s in pretrained if across(s)]
        bars = [
            Line2D([across(s)] * 2, [100 * end for end in s.range], transform=axes.transData)
            for s in pretrained
            if across(s)
        ]
        beside_points(figure, axes, labels, [*axes.get_lines(), *bars])
    return figure


def _panel(axes: Axes, own: Sequence[Score], across: Callable[[Score], float | None]) -> None:
    axes.set(xscale="log")
    log_limits(axes.xaxis, axes.set_xlim, [x for score in own if (x := across(score))], 0.15)
    for score in own:
        colour, marker = look(score.ffn)
        x, low, high = across(score), *score.range
        if not score.is_pretrained:
            axes.axhline(100 * score.median, color=colour, linestyle=":", linewidth=1.2, zorder=2)
        elif x:
            errors = [[100 * (score.median - low)], [100 * (high - score.median)]]
            axes.errorbar(
                x, 100 * score.median, errors, color=colour, marker=marker, markersize=6, capsize=2.5, elinewidth=1,
                linestyle="none", zorder=4,
            )  # fmt: skip
    axes.margins(y=0.15)
