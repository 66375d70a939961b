"""The same race at several horizons: who is below GEMM at each, and how the loss goes on.

Runs trained on more tokens are runs of their own, with their own schedule. A ladder is what groups that differ in
nothing but their tokens say together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lookupffn.report.comparison import Comparison, Row
from lookupffn.report.groups import short_number
from lookupffn.report.power_law import FEWEST_HORIZONS, REACH, Crossing, PowerLaw, crossing, fit
from lookupffn.report.significance import CONFIDENCE, Difference, holm
from lookupffn.report.tables import csv_of, escaped, interval, known, table


@dataclass(frozen=True)
class Step:
    """One variant at one horizon.

    Attributes:
        tokens: the horizon.
        row: its figures there.
        against: its loss less GEMM's; None for GEMM itself and where there is none.
        p: of that difference, adjusted for the number of horizons by Holm's method; None with a single seed.
        verdict: at that p; "itself" for GEMM.
    """

    tokens: float
    row: Row
    against: Difference | None
    p: float | None
    verdict: str


@dataclass(frozen=True)
class Climb:
    """One variant over all the horizons it was trained for.

    Attributes:
        label: the variant's.
        ffn: the feed-forward's name.
        steps: in the order of tokens.
        everywhere: whether the interval's upper bound is below zero at every horizon; None where it is not known.
        law: its fitted loss curve; None with fewer than ``FEWEST_HORIZONS``.
        crossing: of its curve with GEMM's; None where either has no curve or they share fewer than two seeds.
    """

    label: str
    ffn: str
    steps: tuple[Step, ...]
    everywhere: bool | None
    law: PowerLaw | None
    crossing: Crossing | None


@dataclass(frozen=True)
class Ladder:
    """Groups that differ in nothing but their tokens.

    Attributes:
        comparisons: in the order of tokens.
        climbs: of the variants that were trained for at least two horizons, GEMM first.
    """

    comparisons: tuple[Comparison, ...]
    climbs: tuple[Climb, ...]


def ladders(comparisons: Iterable[Comparison]) -> list[Ladder]:
    """Every set of at least two groups that differ in nothing but their tokens and share a variant."""
    members: dict[Hashable, list[Comparison]] = defaultdict(list)
    for comparison in comparisons:
        same = frozenset(item for item in comparison.group.conditions.items() if item[0] != "tokens")
        members[same].append(comparison)
    found = []
    for alike in members.values():
        if len(alike) > 1:
            alike = sorted(alike, key=lambda comparison: comparison.group.conditions["tokens"])
            if climbs := _climbs(alike):
                found.append(Ladder(tuple(alike), tuple(climbs)))
    return found


def _climbs(comparisons: Sequence[Comparison]) -> list[Climb]:
    rows: dict[Hashable, list[tuple[Comparison, Row]]] = defaultdict(list)
    for comparison in comparisons:
        for row in comparison.rows:
            # GEMM is the best of its settings at each horizon, which may not be the same
            name = "reference" if row is comparison.gemm else frozenset(row.variant.settings.items())
            rows[row.ffn, name].append((comparison, row))
    reference = rows.get(("gemm", "reference"), [])
    climbs = [_climb(steps, reference) for steps in rows.values() if len(steps) > 1]
    return sorted(climbs, key=lambda climb: (climb.steps[0].verdict != "itself", climb.label))


def _climb(steps: Sequence[tuple[Comparison, Row]], reference: Sequence[tuple[Comparison, Row]]) -> Climb:
    is_reference = steps[0][1] is steps[0][0].gemm
    found = []
    for comparison, row in steps:
        gemm = None if is_reference else comparison.gemm
        against = None if gemm is None else comparison.difference(row, gemm)
        verdict = "itself" if is_reference else "" if gemm is None else comparison.verdict(row, gemm)
        found.append(Step(comparison.group.conditions["tokens"], row, against, None, verdict))
    tested = [i for i, step in enumerate(found) if step.against is not None and step.against.p is not None]
    for i, p in zip(tested, holm([found[i].against.p for i in tested]), strict=True):
        verdict = found[i].verdict
        if verdict in ("better", "worse") and p > 1 - CONFIDENCE:
            verdict = "tie"
        found[i] = replace(found[i], p=p, verdict=verdict)
    known_everywhere = len(tested) == len(found) and "too early" not in [step.verdict for step in found]
    law = fit([s.tokens for s in found], [s.row.loss.mean for s in found]) if len(found) >= FEWEST_HORIZONS else None
    return Climb(
        label=found[-1].row.label,
        ffn=found[0].row.ffn,
        steps=tuple(found),
        everywhere=all(step.against.high < 0 for step in found) if known_everywhere else None,
        law=law,
        crossing=None if is_reference else _crossing(steps, reference),
    )


def _crossing(steps: Sequence[tuple[Comparison, Row]], reference: Sequence[tuple[Comparison, Row]]) -> Crossing | None:
    """Of the curves through the horizons that both have, over the seeds that both have at all of them."""
    gemm = {comparison.group.conditions["tokens"]: row.losses for comparison, row in reference}
    own = {comparison.group.conditions["tokens"]: row.losses for comparison, row in steps}
    horizons = sorted(gemm.keys() & own.keys())
    if len(horizons) < FEWEST_HORIZONS:
        return None
    seeds = sorted(set.intersection(*(set(losses[tokens]) for losses in (gemm, own) for tokens in horizons)))
    if len(seeds) < 2:
        return None
    values = [np.array([[losses[tokens][seed] for seed in seeds] for tokens in horizons]) for losses in (own, gemm)]
    return crossing(horizons, *values)


def markdown(ladder: Ladder) -> str:
    """horizons.md."""
    names = ", ".join(comparison.group.name for comparison in ladder.comparisons)
    horizons = [comparison.group.conditions["tokens"] for comparison in ladder.comparisons]
    columns, lines = ["feed-forward"], []
    for tokens in horizons:
        at = f"{short_number(tokens)} tokens"
        columns += [f"loss at {at}", "less gemm's", "95% interval", "p (Holm)", "verdict"]
    columns.append("below gemm at every horizon")
    for climb in ladder.climbs:
        by_tokens = {step.tokens: step for step in climb.steps}
        cells = [climb.label]
        for tokens in horizons:
            cells += _step_cells(by_tokens.get(tokens))
        everywhere = {None: "", True: "yes", False: "no"}[climb.everywhere]
        lines.append([*cells, everywhere])
    return (
        f"# {len(horizons)} horizons\n\nGroups: {escaped(names)}. gemm is the best of its settings at each horizon. "
        "Intervals are 95% t-intervals of the differences over paired seeds; p-values are adjusted over the horizons "
        "by Holm's method, and the verdict is at the adjusted p. Below gemm at every horizon: every interval's upper "
        f"bound is below zero.\n\n{table(columns, lines)}\n{_laws(ladder)}"
    )


def _step_cells(step: Step | None) -> list[str]:
    if step is None:
        return [""] * 5
    against = step.against
    return [
        f"{step.row.loss.mean:.4f}",
        known(None if against is None else against.mean, "+.4f"),
        interval(against) if against else "",
        known(step.p, ".2g"),
        step.verdict,
    ]


def _laws(ladder: Ladder) -> str:
    fitted = [climb for climb in ladder.climbs if climb.law is not None]
    if not fitted:
        return f"Loss curves are fitted from {FEWEST_HORIZONS} horizons on.\n"
    columns = ["feed-forward", "E (nats)", "beta", "crosses gemm's curve at", "95% interval", "resamples that cross",
               "lower than gemm in the end"]  # fmt: skip
    lines = []
    for climb in fitted:
        found = climb.crossing
        cells = [climb.label, f"{climb.law.floor:.3f}", f"{climb.law.beta:.3f}"]
        if found is None:
            cells += [""] * 4
        else:
            bounds = "" if found.low is None else f"{short_number(found.low)} to {short_number(found.high)}"
            cells += [
                "" if found.tokens is None else short_number(found.tokens), bounds, f"{found.share:.0%}",
                f"{'yes' if found.ahead else 'no'} ({found.ahead_share:.0%} of resamples)",
            ]  # fmt: skip
        lines.append(cells)
    return (
        "## Loss curves\n\nL = E + A D^-beta through the mean losses at the horizons D, by least squares with E >= 0. "
        f"Crossings are looked for up to {REACH:g} times the longest horizon and the last one counts; seeds are "
        "resampled for their interval. Three horizons determine such a curve and leave nothing to check it by: read it "
        f"as a direction.\n\n{table(columns, lines)}"
    )


def csv_text(ladder: Ladder) -> str:
    """horizons.csv: a line a variant and horizon."""
    return csv_of([_record(climb, step) for climb in ladder.climbs for step in climb.steps])


def _record(climb: Climb, step: Step) -> dict[str, Any]:
    against, law, found = step.against, climb.law, climb.crossing
    return {
        "variant": climb.label,
        "ffn": climb.ffn,
        "tokens": step.tokens,
        "n": len(step.row.losses),
        "validation_loss": step.row.loss.mean,
        "loss_less_gemm": against and against.mean,
        "low_against_gemm": against and against.low,
        "high_against_gemm": against and against.high,
        "p_against_gemm": against and against.p,
        "p_holm": step.p,
        "verdict": step.verdict,
        "below_gemm_at_every_horizon": climb.everywhere,
        "E": law and law.floor,
        "A": law and law.scale * law.unit**law.beta,
        "beta": law and law.beta,
        "crossing_tokens": found and found.tokens,
        "crossing_low": found and found.low,
        "crossing_high": found and found.high,
        "crossing_share": found and found.share,
    }
