"""The planner's advice held against measurements of every choice that it had."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from lookupffn import cost
from lookupffn.errors import UserError
from lookupffn.profiling.advise import Advice, advise
from lookupffn.profiling.machine import TYPES, Machine
from lookupffn.profiling.measure_points import measure_lookups
from lookupffn.profiling.timing import Point

BAR = 0.10
TRIALS = 8  # of ``advise`` on the machine at hand
_TOGETHER = 8  # choices whose tables are in memory at the same time


@dataclass(frozen=True)
class Case:
    """What advice is asked for.

    Attributes:
        d: hidden size.
        tokens: of a call.
        threads: how many.
        share: of GEMM's FLOPs at most.
        precisions: to choose from.
        rows: a table.
    """

    d: int
    tokens: int
    threads: int
    share: float
    precisions: tuple[str, ...] = TYPES
    rows: int = 256

    def __str__(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        tokens = "1 token" if self.tokens == 1 else f"{self.tokens:,} tokens"
        return f"d {self.d}, {tokens}, {threads}, {' '.join(self.precisions)}, S {self.rows}"

    def choices(self, machine: Machine) -> list[Advice]:
        """All that fit, the recommended one first."""
        flops = self.share * cost.gemm_ffn(self.d, 4 * self.d).flops
        return advise(
            machine,
            {"hidden_size": self.d},
            tokens=self.tokens,
            threads=self.threads,
            flops=flops,
            sizes=(self.rows,),
            precisions=self.precisions,
        )


CASES = (
    Case(128, 64, 1, 1 / 2),
    Case(256, 8192, 2, 1 / 3),
    Case(512, 1, 1, 1 / 3),
    Case(512, 128, 2, 1 / 3, ("float32", "bfloat16")),
    Case(512, 2048, 2, 1 / 4),
    Case(768, 2048, 1, 1 / 3, ("float32",)),
    Case(1024, 16, 2, 1 / 6),
    Case(512, 1024, 2, 1 / 4, ("float32",), rows=1024),
)


@dataclass(frozen=True)
class Choice:
    """A choice of a case, and its microseconds a call: measured well, and in a short trial some time before."""

    case: str
    tables: int
    probes: int
    block: int
    precision: str
    measured_us: float
    trial_us: float

    def __str__(self) -> str:
        return f"T {self.tables}, {self.probes} probes, b {self.block}, {self.precision}"

    def is_of(self, point: Point) -> bool:
        """Whether it has a point's shape."""
        own = self.tables, self.probes, self.block, self.precision
        return own == (point.tables, point.probes, point.block, point.precision)


def measure_case(case: Case, machine: Machine, seconds: float = 0.4) -> list[Choice]:
    """Measures all choices of a case, a few of them in turn.

    Args:
        case: what is asked.
        machine: the one at hand.
        seconds: a choice.
    """
    points = [one.point for one in case.choices(machine)]
    trials: list[float] = []
    found: list[float] = []
    for first in range(0, len(points), _TOGETHER):
        some = points[first : first + _TOGETHER]
        trials += measure_lookups(some, seconds=seconds / 4)
        found += measure_lookups(some, seconds=seconds)
    return [
        Choice(str(case), p.tables, p.probes, p.block, p.precision, *(float(f"{1e6 * one:.4g}") for one in times))
        for p, *times in zip(points, found, trials, strict=True)
    ]


@dataclass(frozen=True)
class Outcome:
    """What advice was worth in a case.

    Attributes:
        case: what was asked.
        choices: how many there were.
        predicted: the one predicted to be fastest.
        tried: the fastest of the first ``TRIALS`` in a short trial.
        best: the one measured to be fastest.
    """

    case: str
    choices: int
    predicted: Choice
    tried: Choice
    best: Choice

    def excess(self, choice: Choice) -> float:
        """How much longer a choice takes than the best."""
        return choice.measured_us / self.best.measured_us - 1


def outcomes(choices: Sequence[Choice], machine: Machine) -> list[Outcome]:
    """What the present model's advice is worth, in the cases that were measured.

    Args:
        choices: measured ones.
        machine: where they were.

    Raises:
        UserError: the choices of a case are not those that were measured.
    """
    found = []
    for case in CASES:
        some = [one for one in choices if one.case == str(case)]
        if not some:
            continue
        order = []
        for advice in case.choices(machine)[:TRIALS]:
            measured = next((one for one in some if one.is_of(advice.point)), None)
            if measured is None:
                raise UserError(f"{case}: the recommended choice was not measured; measure the cases again")
            order.append(measured)
        tried = min(order, key=lambda one: one.trial_us)
        found.append(Outcome(str(case), len(some), order[0], tried, min(some, key=lambda one: one.measured_us)))
    return found


def report(found: Sequence[Outcome]) -> str:
    """A Markdown table, and how many cases are within the bar."""
    lines = [
        f"| case | choices | best measured | us a call | by the model alone | longer by | after {TRIALS} trials "
        "| longer by |",
        "| --- | ---: | --- | ---: | --- | ---: | --- | ---: |",
    ]
    for one in found:
        lines.append(
            f"| {one.case} | {one.choices} | {one.best} | {one.best.measured_us:,.4g} | {one.predicted} | "
            f"{one.excess(one.predicted):.1%} | {one.tried} | {one.excess(one.tried):.1%} |"
        )
    alone = sum(one.excess(one.predicted) <= BAR for one in found)
    after = sum(one.excess(one.tried) <= BAR for one in found)
    return (
        "\n".join(lines)
        + f"\n\nWithin {BAR:.0%} of the best measured choice: {alone} of {len(found)} cases by the model alone, "
        f"{after} after {TRIALS} trials.\n"
    )


_TYPES = {"tables": int, "probes": int, "block": int, "measured_us": float, "trial_us": float}


def write_choices(path: Path, choices: Iterable[Choice]) -> None:
    """A CSV file, a line a choice."""
    names = [field.name for field in fields(Choice)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([getattr(one, name) for name in names] for one in choices)


def read_choices(path: Path) -> list[Choice]:
    """What ``write_choices`` wrote.

    Raises:
        UserError: it cannot be read.
    """
    names = {field.name for field in fields(Choice)}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if any(row.keys() != names for row in rows):
            raise ValueError("other columns")
        return [Choice(**{name: _TYPES.get(name, str)(value) for name, value in row.items()}) for row in rows]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} is not a file of measured choices ({error}): measure them again") from None
