"""Labels in plots that stand beside what they name and not on top of each other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

SIZE = 7.5  # points
_LINE = 1.45  # of the size, from one label to the next
# how far from its point a label may go, in points, nearest first, and from where on a line leads to it
_DISTANCES = (6, 10, 15, 23, 33, 46, 62, 80)
_LEADER = 12
_DIRECTIONS = 16


@dataclass(frozen=True)
class Label:
    """A text at a point of the data.

    Attributes:
        x, y: the point.
        text: what it is called.
        colour: of the text.
    """

    x: float
    y: float
    text: str
    colour: str


def beside_points(figure: Figure, axes: Axes, labels: Sequence[Label], lines: Sequence[Line2D] = ()) -> None:
    """Puts each label next to its point, away from other labels, from points and, if there is room, from lines.

    Args:
        figure: laid out; its size and limits must not change after this.
        axes: whose data the points are in.
        labels: points and texts.
        lines: what else is drawn there.
    """
    pixels = figure.dpi / 72
    frame = axes.get_window_extent()
    points = [axes.transData.transform((label.x, label.y)) for label in labels]
    taken = [_around(point, 5 * pixels) for point in points]
    dots = np.concatenate([np.empty((0, 2)), *(_dots(line) for line in lines)])
    for label, point in zip(labels, points, strict=True):
        text = axes.annotate(
            label.text, (label.x, label.y), xytext=(0, 0), textcoords="offset points", fontsize=SIZE,
            color=label.colour, zorder=6, path_effects=[withStroke(linewidth=2, foreground="white")],
        )  # fmt: skip
        text.set_in_layout(False)
        box = text.get_window_extent()
        size = box.width / pixels, box.height / pixels
        costs = {}
        for offset in _offsets(*size):
            place = Bbox.from_bounds(
                point[0] + offset[0] * pixels, point[1] + offset[1] * pixels, box.width, box.height
            )
            costs[offset] = _cost(place, taken, dots, frame) + 0.05 * _gap(offset, *size) ** 2
        offset = min(costs, key=costs.__getitem__)
        text.set_position(offset)
        taken.append(
            Bbox.from_bounds(point[0] + offset[0] * pixels, point[1] + offset[1] * pixels, box.width, box.height)
        )
        if _gap(offset, *size) > _LEADER:
            leader = axes.annotate(
                "", (label.x, label.y), xytext=_nearest(offset, *size), textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": label.colour, "linewidth": 0.5, "alpha": 0.6, "shrinkB": 3},
            )  # fmt: skip
            leader.set_in_layout(False)


def _around(point: Sequence[float], reach: float) -> Bbox:
    x, y = point
    return Bbox.from_extents(x - reach, y - reach, x + reach, y + reach)


def _dots(line: Line2D) -> np.ndarray:
    """Pixels on a line, a few apart: [N, 2]."""
    corners = line.get_transform().transform(line.get_path().interpolated(1).vertices)
    steps = [
        np.linspace(start, end, max(2, int(np.hypot(*(end - start)) / 3))) for start, end in itertools.pairwise(corners)
    ]
    return np.concatenate([corners[:1], *steps])


def _offsets(width: float, height: float) -> list[tuple[float, float]]:
    """Where a text's lower left corner may be, in points from its point."""
    found = []
    for distance in _DISTANCES:
        for step in range(_DIRECTIONS):
            angle = 2 * math.pi * step / _DIRECTIONS
            x, y = math.cos(angle), math.sin(angle)
            # the text's near edge, not its middle, is at the distance
            found.append((distance * x - width * (1 - x) / 2, distance * y - height * (1 - y) / 2))
    return found


def _nearest(offset: tuple[float, float], width: float, height: float) -> tuple[float, float]:
    """The place of a text's box that is nearest to its point, in points from it."""
    x, y = offset
    return min(max(0.0, x), x + width), min(max(0.0, y), y + height)


def _gap(offset: tuple[float, float], width: float, height: float) -> float:
    return math.hypot(*_nearest(offset, width, height))


def _cost(place: Bbox, taken: Sequence[Bbox], dots: np.ndarray, frame: Bbox) -> float:
    """How bad a place for a text is: area out of the frame or over labels and points, and length of line under it."""
    outside = place.width * place.height - _overlap(place, frame)
    within = (dots >= place.min).all(1) & (dots <= place.max).all(1)
    return 5.0 * (outside + sum(_overlap(place, other) for other in taken)) + 3.0 * within.sum()


def _overlap(one: Bbox, other: Bbox) -> float:
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return max(0.0, width) * max(0.0, height)


def at_ends(figure: Figure, axes: Axes, labels: Sequence[Label]) -> None:
    """Lists labels to the right of the axes, each as near to the height of its line's end as the others leave room.

    Args:
        figure: laid out; its size and limits must not change after this.
        axes: whose data the ends are in.
        labels: ends of lines and their texts.
    """
    if not labels:
        return
    frame = axes.get_window_extent()
    step = SIZE * _LINE * figure.dpi / 72
    ordered = sorted(labels, key=lambda label: (label.y, label.text))
    wanted = [axes.transData.transform((label.x, label.y))[1] for label in ordered]
    heights = spread_out(wanted, step, frame.y0, frame.y1)
    for label, height in zip(ordered, heights, strict=True):
        axes.annotate(
            label.text, (label.x, label.y), xytext=(1.035, (height - frame.y0) / frame.height),
            textcoords="axes fraction", fontsize=SIZE, color=label.colour, va="center", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": label.colour, "linewidth": 0.5, "alpha": 0.6, "relpos": (0, 0.5)},
        )  # fmt: skip


def spread_out(wanted: Sequence[float], step: float, low: float, high: float) -> list[float]:
    """Heights at least ``step`` apart, in the same order, near the wanted ones and between low and high if they fit.

    Args:
        wanted: ascending.
        step: the least distance.
        low: the lowest height.
        high: the highest height.
    """
    # neighbours that are too close become one block, centred on what its members want
    blocks: list[list[float]] = []  # [sum of wanted, members]
    for height in wanted:
        blocks.append([height, 1])
        while len(blocks) > 1 and _bottom(blocks[-1], step, low, high) < _top(blocks[-2], step, low, high) + step:
            total, members = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += members
    heights: list[float] = []
    for block in blocks:
        bottom = _bottom(block, step, low, high)
        heights.extend(bottom + step * i for i in range(int(block[1])))
    return heights


def _bottom(block: Sequence[float], step: float, low: float, high: float) -> float:
    length = step * (block[1] - 1)
    return max(low, min(high - length, block[0] / block[1] - length / 2))


def _top(block: Sequence[float], step: float, low: float, high: float) -> float:
    return _bottom(block, step, low, high) + step * (block[1] - 1)
