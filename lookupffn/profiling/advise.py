"""Which lookup to choose for a machine: the fastest that reads enough rows within a budget of FLOPs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lookupffn import cost
from lookupffn.errors import UserError
from lookupffn.ops.limits import MAX_PROBES, SMALLEST_BLOCK
from lookupffn.profiling.explain import Prediction, predict
from lookupffn.profiling.machine import TYPES, Machine
from lookupffn.profiling.measure_points import measure_lookups
from lookupffn.profiling.timing import Point

GEMM_SHARE = 1 / 6  # of GEMM's FLOPs: the paper's claim
_TRIAL_SECONDS = 0.2


@dataclass(frozen=True)
class Advice:
    """A choice and what is predicted for it.

    Attributes:
        point: tables, rows, probes, block and precision.
        prediction: its times.
        flops: a token.
        measured: seconds a call on the machine at hand, where it was tried.
    """

    point: Point
    prediction: Prediction
    flops: float
    measured: float | None = None

    def options(self) -> dict[str, Any]:
        """As configs/ffn/lookup.yaml and the command line have them."""
        p = self.point
        return {"num_tables": p.tables, "table_size": p.rows, "num_probes": p.probes, "block_size": p.block}


def flops_of(point: Point) -> float:
    """FLOPs a token of a lookup, by lookupffn.cost."""
    parts = cost.bh4_projection(point.padded, point.copies, point.block)
    parts |= cost.hash_codes(point.tables, point.bits, point.probes)
    parts |= cost.gather(point.tables, point.probes, point.d)
    return sum(parts.values())


def candidates(
    d: int, tokens: int, threads: int, flops: float, rows_read: int, sizes: Sequence[int], precisions: Sequence[str]
) -> list[Point]:
    """All choices that read at least ``rows_read`` rows a token within a budget.

    Args:
        d: hidden size.
        tokens: of a call.
        threads: how many.
        flops: a token at most.
        rows_read: T N at least.
        sizes: rows a table to choose from.
        precisions: to choose from.
    """
    found = []
    blocks = [block for block in (16, 32, 64) if SMALLEST_BLOCK <= block <= d]
    for probes in range(1, MAX_PROBES + 1):
        for rows in sizes:
            for block in blocks or [d]:
                tables = -(-rows_read // probes)
                point = Point(d, tables, rows, probes, block, tokens, "float32", threads)
                if probes <= rows and flops_of(point) <= flops:
                    found += [replace(point, precision=precision) for precision in precisions]
    return found


def advise(
    machine: Machine,
    model: Mapping[str, Any],
    *,
    tokens: int = 8192,
    threads: int | None = None,
    flops: float | None = None,
    rows_read: int | None = None,
    sizes: Sequence[int] = (256,),
    precisions: Sequence[str] = TYPES,
    trials: int = 0,
) -> list[Advice]:
    """Lookups for a machine and model, fastest first.

    What a lookup learns goes with the rows it reads (docs/results.md), so those are held fixed, and speed decides.
    Predictions of similar lookups differ by less than they are off: on the machine itself, try the first few.

    Args:
        machine: where it will run.
        model: "hidden_size", as configs/model/*.yaml have it.
        tokens: of a call.
        threads: how many; all cores if None.
        flops: a token at most; a sixth of GEMM's if None.
        rows_read: tables times probes at least; what the default recipe reads if None.
        sizes: rows a table to choose from.
        precisions: to choose from.
        trials: how many of the fastest to measure, half a second each; only where ``machine`` is the one at hand. They
            come first, by what was measured.

    Raises:
        UserError: nothing fits the budget.
    """
    d = model["hidden_size"]
    budget = GEMM_SHARE * cost.gemm_ffn(d, 4 * d).flops if flops is None else flops
    wanted = 3 * max(1, d // 4) if rows_read is None else rows_read
    threads = machine.cores if threads is None else threads
    points = candidates(d, tokens, threads, budget, wanted, sizes, precisions)
    if not points:
        raise UserError(
            f"no lookup at hidden size {d} reads {wanted} rows within {budget:,.0f} FLOPs a token: give more FLOPs or "
            "fewer rows"
        )
    advice = [Advice(point, predict(point, machine), flops_of(point)) for point in points]
    advice.sort(key=lambda one: one.prediction.lookup_seconds)
    tried = advice[:trials]
    measured = measure_lookups([one.point for one in tried], seconds=_TRIAL_SECONDS)
    tried = [replace(one, measured=seconds) for one, seconds in zip(tried, measured, strict=True)]
    return sorted(tried, key=lambda one: one.measured or 0.0) + advice[trials:]
