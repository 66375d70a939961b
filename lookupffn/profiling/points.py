"""Points of the space of shapes at which predicted and measured time are compared, and files of what was measured.

A third of the points is held out: it is written to a file of its own, which nobody looks at while the model of time is
made. Which points those are is decided by a seed before anything is measured.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from lookupffn.errors import UserError
from lookupffn.profiling import sampling
from lookupffn.profiling.timing import Point

SEED = 20261125
GEMM_PARTS = ("first product", "activation", "second product")
_MOST_TABLES = 1 << 28  # bytes in float32: many times any third-level cache's share of a core
_MOST_FLOPS = 8e10  # of GEMM in a call: 0.7 s with one thread of Zen 4


@dataclass(frozen=True)
class Measured:
    """Seconds a call at a point.

    Attributes:
        point: where.
        entropy: bits a code, mean over tables.
        lookup: seconds.
        gemm: seconds.
        parts: seconds of each of sampling.PARTS and of GEMM_PARTS; empty where samples were too few.
    """

    point: Point
    entropy: float
    lookup: float
    gemm: float
    parts: dict[str, float]


def drawn(count: int, threads: Sequence[int], seed: int = SEED) -> tuple[list[Point], list[Point]]:
    """Points drawn from the whole space, each value of each axis about equally often.

    Args:
        count: how many.
        threads: thread counts to draw from.
        seed: of the draw and of the split.

    Returns:
        The points to make a model with (two thirds), and those held out.
    """
    generator = random.Random(seed)
    found: list[Point] = []
    while len(found) < count:
        d = generator.choice([128, 256, 512, 512, 768, 1024, 2048])
        point = Point(
            d=d,
            tables=generator.choice([d // 8, d // 4, d // 4, d // 2]),
            rows=generator.choice([64, 256, 256, 1024, 4096]),
            probes=generator.choice([1, 1, 2, 3, 4]),
            block=generator.choice([block for block in (16, 32, 64) if block <= d // 4]),
            tokens=generator.choice([1, 1, 4, 16, 64, 128, 512, 2048, 8192, 16384]),
            precision=generator.choice(["float32", "float32", "bfloat16", "int8", "int8"]),
            threads=generator.choice(list(threads)),
            offset=generator.choice([0.0, 0.0, 0.0, 1.0]),
        )
        if 4 * point.tables * point.rows * d <= _MOST_TABLES and 16 * d * d * point.tokens <= _MOST_FLOPS:
            found.append(point)
    return found[: count - count // 3], found[count - count // 3 :]


_FIELDS = [field.name for field in fields(Point)]
_COLUMNS = [*_FIELDS, "entropy", "lookup_us", "gemm_us"]


def write_points(path: Path, measured: Iterable[Measured]) -> None:
    """A CSV file of microseconds a call, a line a point."""
    part_columns = [f"{part}_us" for part in (*sampling.PARTS, *GEMM_PARTS)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*_COLUMNS, *part_columns], lineterminator="\n")
        writer.writeheader()
        for one in measured:
            row = asdict(one.point) | {
                "entropy": round(one.entropy, 3),
                "lookup_us": f"{1e6 * one.lookup:.4g}",
                "gemm_us": f"{1e6 * one.gemm:.4g}",
            }
            writer.writerow(row | {f"{part}_us": f"{1e6 * seconds:.4g}" for part, seconds in one.parts.items()})


def read_points(path: Path) -> list[Measured]:
    """The points of a file that ``write_points`` wrote.

    Raises:
        UserError: it cannot be read.
    """
    found = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                types = {"precision": str, "offset": float}
                point = Point(**{name: types.get(name, int)(row[name]) for name in _FIELDS})
                parts = {
                    part: 1e-6 * float(row[f"{part}_us"])
                    for part in (*sampling.PARTS, *GEMM_PARTS)
                    if row.get(f"{part}_us")
                }
                lookup, gemm = (1e-6 * float(row[f"{name}_us"]) for name in ("lookup", "gemm"))
                found.append(Measured(point, float(row["entropy"]), lookup, gemm, parts))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a file of measured points ({error}): measure them again") from None
    return found
