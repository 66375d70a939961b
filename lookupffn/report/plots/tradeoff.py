"""Perplexity against what it costs, against an option that was swept, and against the training loss."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, Formatter, FuncFormatter

from lookupffn.report.comparison import Comparison, Row, pareto
from lookupffn.report.groups import show
from lookupffn.report.plots.labels import Label, beside_points
from lookupffn.report.plots.style import (
    GREY,
    MOST_NAMED,
    SPREAD,
    key,
    legend,
    log_axes,
    log_limits,
    look,
    one_axes,
    plain,
)
from lookupffn.report.runs import is_number
from lookupffn.report.significance import Spread

PERPLEXITY = "validation perplexity (masked tokens), log scale"


def flops(comparison: Comparison) -> Figure:
    """Perplexity against FLOPs at inference."""
    label = "feed-forward FLOPs a token, all layers"
    return _against_cost(comparison, [row.flops for row in comparison.rows], label, EngFormatter(sep=""))


def cpu_time(comparison: Comparison) -> Figure | None:
    """Perplexity against measured CPU time."""
    if comparison.latency is None:
        return None
    label = f"feed-forward CPU time a token, all layers (µs; {comparison.latency})"
    return _against_cost(comparison, [row.cpu_us for row in comparison.rows], label, FuncFormatter(plain))


def projected_time(comparison: Comparison, machine: int) -> Figure | None:
    """Perplexity against the time projected to one of ``comparison.projections``."""
    times = [row.projected[machine] for row in comparison.rows]
    if not any(times):
        return None
    how = f"{comparison.projections[machine].how}; coarse but for lookup and gemm"
    label = f"feed-forward time a token, all layers (µs; {how})"
    return _against_cost(
        comparison, [None if time is None else time.us_per_token for time in times], label, FuncFormatter(plain)
    )


def _against_cost(comparison: Comparison, across: Sequence[float | None], xlabel: str, ticks: Formatter) -> Figure:
    """A point a variant, lines along single cost options, and the Pareto front.

    Args:
        comparison: the figures.
        across: costs of its rows; None leaves a row out.
        xlabel, ticks: of the axis of costs.
    """
    costs = {row.number: cost for row, cost in zip(comparison.rows, across, strict=True) if cost is not None}
    rows = [row for row in comparison.rows if row.number in costs]
    # no feed-forward costs nothing, which a log axis does not have: it is a line across
    points = [row for row in rows if row.ffn != "none" and costs[row.number] > 0]
    figure, axes = one_axes(comparison, 10, 6.6)
    log_axes(
        axes, [costs[row.number] for row in points], [end for row in rows for end in _ends(row.perplexity)], room=0.12
    )
    axes.xaxis.set_major_formatter(ticks)
    axes.set(xlabel=f"{xlabel}, log scale", ylabel=PERPLEXITY)
    lines, handles = _points(axes, points, [costs[row.number] for row in points])
    for ffn in {row.ffn for row in points}:
        own = [row for row in points if row.ffn == ffn]
        lines += _connect(axes, ffn, chains(own, costs))
    crossbars, more = _across(axes, [row for row in rows if row not in points])
    front_lines, front = _front(axes, rows, points, costs)
    handles += more + front
    if any(row.perplexity.std is not None for row in rows):
        handles.append(Line2D([], [], color="black", marker="|", markersize=10, linestyle="none", label=SPREAD))
    places = [(costs[row.number], row.perplexity.mean) for row in points]
    _finish(figure, axes, points, places, lines + crossbars + front_lines, handles)
    return figure


def _points(axes: Axes, rows: Sequence[Row], across: Sequence[float]) -> tuple[list[Line2D], list[Line2D]]:
    """Draws perplexities with their spread; returns what labels keep off, and a handle for each feed-forward."""
    lines = []
    for row, x in zip(rows, across, strict=True):
        colour, marker = look(row.ffn)
        axes.errorbar(
            x, row.perplexity.mean, yerr=row.perplexity.std, color=colour, marker=marker, markersize=6,
            capsize=2.5, elinewidth=1, linestyle="none", zorder=4,
        )  # fmt: skip
        lines.append(Line2D([x] * 2, _ends(row.perplexity), transform=axes.transData))
    names = sorted({row.ffn for row in rows})
    handles = [Line2D([], [], color=look(name)[0], marker=look(name)[1], label=name, linewidth=1) for name in names]
    return lines, handles


def chains(rows: Sequence[Row], costs: Mapping[int, float]) -> list[list[tuple[float, float]]]:
    """Curves of one feed-forward along a single option of its own: (cost, perplexity) in the order of costs.

    Variants on one curve agree in all other options of the feed-forward. Of several at one point that were trained
    differently the best counts.

    Args:
        rows: the feed-forward's variants.
        costs: by the rows' numbers.
    """
    options = {
        row.number: {name: value for name, value in row.variant.settings.items() if name.startswith("ffn.")}
        for row in rows
    }
    found = []
    for option in sorted({name for own in options.values() for name in own}):
        curves: dict[Hashable, dict[object, Row]] = defaultdict(dict)
        for row in rows:
            own = options[row.number]
            rest = frozenset(item for item in own.items() if item[0] != option)
            best = curves[rest].setdefault(own.get(option), row)
            if row.perplexity.mean < best.perplexity.mean:
                curves[rest][own.get(option)] = row
        for curve in curves.values():
            points = sorted((costs[row.number], row.perplexity.mean) for row in curve.values())
            if len({cost for cost, _ in points}) > 1:
                found.append(points)
    return found


def _connect(axes: Axes, ffn: str, curves: Sequence[Sequence[tuple[float, float]]]) -> list[Line2D]:
    return [
        line
        for curve in curves
        for line in axes.plot(*zip(*curve, strict=True), color=look(ffn)[0], linewidth=1, alpha=0.45, zorder=3)
    ]


def _across(axes: Axes, rows: Sequence[Row]) -> tuple[list[Line2D], list[Line2D]]:
    """Lines across at the perplexities of variants that have no place on the axis."""
    lines, handles = [], []
    for row in rows:
        colour = look(row.ffn)[0]
        lines.append(axes.axhline(row.perplexity.mean, color=colour, linestyle=":", linewidth=1.2, zorder=2))
        suffix = ": no feed-forward" if row.ffn == "none" else ""
        handles.append(Line2D([], [], color=colour, linestyle=":", label=f"{row.label}{suffix}"))
    return lines, handles


def _front(
    axes: Axes, rows: Sequence[Row], points: Sequence[Row], costs: Mapping[int, float]
) -> tuple[list[Line2D], list[Line2D]]:
    on = pareto([(costs[row.number], row.perplexity.mean) for row in rows])
    front = sorted(
        (costs[row.number], row.perplexity.mean) for row, is_on in zip(rows, on, strict=True) if is_on and row in points
    )
    if not front:
        return [], []
    stairs = [*front, (axes.get_xlim()[1], front[-1][1])]
    lines = axes.step(
        *zip(*stairs, strict=True), where="post", color=GREY, linewidth=5, alpha=0.35, zorder=1, solid_capstyle="butt"
    )
    return lines, [Line2D([], [], color=GREY, linewidth=5, alpha=0.35, label="Pareto front")]


def _finish(
    figure: Figure,
    axes: Axes,
    rows: Sequence[Row],
    points: Sequence[tuple[float, float]],
    lines: Sequence[Line2D],
    handles: list,
) -> None:
    """Legend, key, and a label at the point of each row; nothing may move any more after that."""
    numbered = len(rows) > MOST_NAMED
    legend(figure, handles)
    if numbered:
        key(figure, rows)
    figure.draw_without_rendering()
    names = [str(row.number) if numbered else row.label for row in rows]
    labels = [Label(*point, name, look(r.ffn)[0]) for point, r, name in zip(points, rows, names, strict=True)]
    beside_points(figure, axes, labels, lines)


def swept(comparison: Comparison, setting: str) -> Figure | None:
    """Perplexity against a setting; lines join variants that differ in nothing else. None where no variant has it.

    Args:
        comparison: the figures.
        setting: "ffn.num_tables", "optimizer.lr", ...
    """
    rows = [row for row in comparison.rows if setting in row.variant.settings]
    if not rows:
        return None
    values = [row.variant.settings[setting] for row in rows]
    numeric = all(map(is_number, values))
    logarithmic = numeric and min(values) > 0
    names = sorted({show(value) for value in values})
    across = [value if numeric else names.index(show(value)) for value in values]
    references = [row for row in (comparison.gemm, comparison.none) if row is not None and row not in rows]
    figure, axes = one_axes(comparison, 10, 6.6)
    log_axes(axes, [1.0, 2.0], [end for row in (*rows, *references) for end in _ends(row.perplexity)], room=0.1)
    if logarithmic:
        log_limits(axes.xaxis, axes.set_xlim, across, 0.12)
    else:
        room = 0.12 * (max(across) - min(across)) or 1.0
        axes.set(xscale="linear", xlim=(min(across) - room, max(across) + room))
    axes.set_xticks(sorted(set(across)), [show(value) for value in sorted(set(values))] if numeric else names)
    axes.set(xlabel=f"{setting}{', log scale' if logarithmic else ''}", ylabel=PERPLEXITY)
    lines, handles = _points(axes, rows, across)
    curves: dict[tuple[str, Hashable], list[tuple[float, float]]] = defaultdict(list)
    for row, x in zip(rows, across, strict=True):
        rest = frozenset(item for item in row.variant.settings.items() if item[0] != setting)
        curves[row.ffn, rest].append((x, row.perplexity.mean))
    for (ffn, _), points in curves.items():
        lines += _connect(axes, ffn, [sorted(points)])
    crossbars, more = _across(axes, references)
    places = [(x, row.perplexity.mean) for x, row in zip(across, rows, strict=True)]
    _finish(figure, axes, rows, places, lines + crossbars, handles + more)
    return figure


def generalisation(comparison: Comparison) -> Figure | None:
    """Validation loss against training loss: what lies above the line through GEMM generalises worse than it."""
    rows = [row for row in comparison.rows if row.training_loss is not None]
    if not rows:
        return None
    figure, axes = one_axes(comparison, 10, 6.6)
    lines = []
    for row in rows:
        colour, marker = look(row.ffn)
        axes.errorbar(
            row.training_loss.mean, row.loss.mean, xerr=row.training_loss.std, yerr=row.loss.std, color=colour,
            marker=marker, markersize=6, capsize=2.5, elinewidth=1, linestyle="none", zorder=4,
        )  # fmt: skip
        for xs, ys in (
            (_ends(row.training_loss), [row.loss.mean] * 2),
            ([row.training_loss.mean] * 2, _ends(row.loss)),
        ):
            lines.append(Line2D(xs, ys, transform=axes.transData))
    names = sorted({row.ffn for row in rows})
    handles = [
        Line2D([], [], color=look(name)[0], marker=look(name)[1], label=name, linestyle="none") for name in names
    ]
    reference = comparison.gemm
    if reference is not None and reference.training_loss is not None:
        point = (reference.training_loss.mean, reference.loss.mean)
        lines.append(axes.axline(point, slope=1, color=GREY, linestyle=":", linewidth=1.2, zorder=1))
        handles.append(Line2D([], [], color=GREY, linestyle=":", label=f"generalises like {reference.label}"))
    if any(row.loss.std is not None for row in rows):
        handles.append(Line2D([], [], color="black", marker="|", markersize=10, linestyle="none", label=SPREAD))
    axes.set(xlabel="training loss, mean over the last tenth of the tokens (nats)", ylabel="validation loss (nats)")
    axes.margins(0.12)
    _finish(figure, axes, rows, [(row.training_loss.mean, row.loss.mean) for row in rows], lines, handles)
    return figure


def _ends(value: Spread) -> tuple[float, float]:
    return value.mean - (value.std or 0.0), value.mean + (value.std or 0.0)
