"""The numbers of one group: means and spreads over seeds, shares, the Pareto front, who is better than whom.

Losses are in nats a masked token; a spread is a sample standard deviation over seeds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from lookupffn.report.groups import Group, Variant
from lookupffn.report.inference_times import InferenceTime, InferenceTimes
from lookupffn.report.loss_curves import FALL_OFF, fallen_off, training_loss
from lookupffn.report.runs import Run, is_number
from lookupffn.report.significance import Difference, Spread, difference, spread

# a race is read where training went on for this many times the slowest plateau exit
HORIZON = 3
# and for this many times the slowest second fall, where runs recorded one
SECOND_HORIZON = 2


@dataclass(frozen=True)
class Row:
    """One variant's figures. What is not known is None.

    Attributes:
        number: its place in the table, from 1.
        variant: whose they are.
        loss, perplexity: of the masked validation tokens.
        training_loss: over the last tenth of the tokens.
        share: of GEMM's gain over no feed-forward: (loss_none - loss) / (loss_none - loss_gemm).
        flops: of all feed-forwards, a token at inference.
        flops_ratio: GEMM's FLOPs at the model's intermediate size over these.
        parameters, ffn_parameters: in all, and in feed-forwards.
        parameters_touched, ffn_parameters_touched: of these, what one token reads.
        cpu_us: microseconds a token of all feed-forwards on a CPU.
        cpu_ratio: GEMM's time over it.
        projected: inference times on the machines of ``Comparison.projections``.
        tokens_per_s: in training, mean over seeds.
        exit_step, exit_tokens: of the seed that left the plateau last; None where one never did.
        second_fall_step, second_fall_tokens: of the seed whose loss fell a second time last; None where that was not
            seen or not recorded.
        fallen_off: runs that are behind their siblings at half time; None where too few can be told.
        flops_front, cpu_front: on the Pareto front of perplexity against FLOPs, against CPU time.
        statistics: what the feed-forward counted in itself, means over seeds.
    """

    number: int
    variant: Variant
    loss: Spread
    perplexity: Spread
    training_loss: Spread | None
    share: float | None
    flops: float
    flops_ratio: float | None
    parameters: float
    ffn_parameters: float
    parameters_touched: float | None
    ffn_parameters_touched: float | None
    cpu_us: float | None
    cpu_ratio: float | None
    projected: tuple[InferenceTime | None, ...]
    tokens_per_s: float
    exit_step: int | None
    exit_tokens: float | None
    second_fall_step: int | None
    second_fall_tokens: float | None
    fallen_off: tuple[Run, ...] | None
    flops_front: bool
    cpu_front: bool | None
    statistics: Mapping[str, float]

    @property
    def label(self) -> str:
        """The variant's label."""
        return self.variant.label

    @property
    def ffn(self) -> str:
        """The feed-forward's name."""
        return self.variant.ffn

    @property
    def losses(self) -> dict[int, float]:
        """Validation loss by seed."""
        return {run.seed: run.loss for run in self.variant.runs}


@dataclass(frozen=True)
class Comparison:
    """Everything about one group.

    Attributes:
        group: the runs.
        rows: the variants, sorted.
        gemm: the reference: GEMM at the model's own intermediate size, the best of them.
        none: the best variant without a feed-forward.
        lookup: the best lookup variant.
        horizon: tokens trained over those of the slowest plateau exit; None where a run never left it.
        warnings: sentences a reader must not miss.
        latency: how CPU times were measured, in words; None where they were not.
        projections: the machines that times were projected to.
    """

    group: Group
    rows: tuple[Row, ...]
    gemm: Row | None
    none: Row | None
    lookup: Row | None
    horizon: float | None
    warnings: tuple[str, ...]
    latency: str | None
    projections: tuple[InferenceTimes, ...]

    def difference(self, row: Row, other: Row) -> Difference:
        """One variant's validation loss less another's."""
        return difference(row.losses, other.losses)

    def verdict(self, row: Row, other: Row) -> str:
        """Who is better; none before both have two seeds and are well past the plateau and the second fall."""
        exits = [row.exit_tokens, other.exit_tokens]
        falls = [row.second_fall_tokens or 0, other.second_fall_tokens or 0]
        early = None in exits or self.group.conditions["tokens"] < max(
            HORIZON * max(exits), SECOND_HORIZON * max(falls)
        )
        return self.difference(row, other).verdict(early=early)

    def training_difference(self, row: Row, other: Row) -> Difference | None:
        """The same of training losses; None where they were not logged."""
        if row.training_loss is None or other.training_loss is None:
            return None
        losses = [{run.seed: training_loss(run) for run in r.variant.runs} for r in (row, other)]
        return difference(*losses)


def compare(
    group: Group,
    measured: InferenceTimes | None = None,
    projections: Sequence[InferenceTimes] = (),
    *,
    sort: str = "flops",
) -> Comparison:
    """The figures of a group.

    Args:
        group: the runs.
        measured: CPU times, if known.
        projections: times on other machines.
        sort: "flops" (ascending, then perplexity) or "perplexity".
    """
    order: dict[str, Callable[[Row], tuple]] = {
        "flops": lambda row: (row.flops, row.loss.mean, row.label),
        "perplexity": lambda row: (row.loss.mean, row.flops, row.label),
    }
    rows = sorted((_row(variant, measured, projections) for variant in group.variants), key=order[sort])
    size = group.conditions.get("model.intermediate_size")
    gemm = _best(row for row in rows if row.ffn == "gemm" and row.variant.settings.get("ffn.intermediate_size") == size)
    none = _best(row for row in rows if row.ffn == "none")
    flops_front = pareto([(row.flops, row.perplexity.mean) for row in rows])
    timed = [row for row in rows if row.cpu_us is not None]
    cpu_front = dict(
        zip((row.label for row in timed), pareto([(row.cpu_us, row.perplexity.mean) for row in timed]), strict=True)
    )
    finished = [
        replace(
            row, number=number, share=_share(row, gemm, none), flops_front=on_front, cpu_front=cpu_front.get(row.label)
        )
        for number, (row, on_front) in enumerate(zip(rows, flops_front, strict=True), start=1)
    ]
    numbered = {row.label: row for row in finished}
    horizon, warnings = _horizon(group)
    return Comparison(
        group,
        tuple(finished),
        gemm and numbered[gemm.label],
        none and numbered[none.label],
        _best(row for row in finished if row.ffn == "lookup"),
        horizon,
        (*warnings, *_fallen(finished)),
        measured.how if measured and timed else None,
        tuple(projections),
    )


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """For each (cost, perplexity), whether no other is as good in both and better in one."""
    return [
        not any(other[0] <= point[0] and other[1] <= point[1] and other != point for other in points)
        for point in points
    ]


def _best(rows: Iterable[Row]) -> Row | None:
    return min(rows, key=lambda row: (row.loss.mean, row.label), default=None)


def _share(row: Row, gemm: Row | None, none: Row | None) -> float | None:
    """None too where GEMM gains nothing, for then a share of it means nothing."""
    if gemm is None or none is None or gemm.loss.mean >= none.loss.mean:
        return None
    return (none.loss.mean - row.loss.mean) / (none.loss.mean - gemm.loss.mean)


def _row(variant: Variant, measured: InferenceTimes | None, projections: Sequence[InferenceTimes]) -> Row:
    """What does not need the other variants."""
    runs = variant.runs
    flops = _mean(runs, "ffn_flops_per_token")
    time = measured and measured.of(runs[0])
    exits = [run.tokens_at("plateau_exit_step") for run in runs]
    left = None not in exits
    falls = [run.summary.get("second_fall_step") for run in runs]
    training = [training_loss(run) for run in runs]
    fallen = fallen_off(runs)
    return Row(
        number=0,
        variant=variant,
        loss=spread([run.loss for run in runs]),
        perplexity=spread([run.perplexity for run in runs]),
        training_loss=None if None in training else spread(training),
        share=None,
        flops=flops,
        flops_ratio=_mean(runs, "gemm_ffn_flops_per_token") / flops if flops else None,
        parameters=_mean(runs, "parameters"),
        ffn_parameters=_mean(runs, "ffn_parameters"),
        parameters_touched=_mean(runs, "parameters_touched"),
        ffn_parameters_touched=_mean(runs, "ffn_parameters_touched"),
        cpu_us=time.us_per_token if time else None,
        cpu_ratio=time.ratio if time else None,
        projected=tuple(machine.of(runs[0]) for machine in projections),
        tokens_per_s=_mean(runs, "tokens_per_s"),
        exit_step=max(run.summary["plateau_exit_step"] for run in runs) if left else None,
        exit_tokens=max(exits) if left else None,
        second_fall_step=None if None in falls else max(falls),
        second_fall_tokens=None if None in falls else max(run.tokens_at("second_fall_step") for run in runs),
        fallen_off=None if fallen is None else tuple(fallen),
        flops_front=False,
        cpu_front=None,
        statistics=_statistics(runs),
    )


def _mean(runs: Sequence[Run], key: str) -> float | None:
    values = [run.summary.get(key) for run in runs]
    return None if None in values else statistics.fmean(values)


def _statistics(runs: Sequence[Run]) -> dict[str, float]:
    """Means of the statistics that all runs have."""
    found = [run.summary.get("statistics") or {} for run in runs]
    names = [name for name in found[0] if all(is_number(values.get(name)) for values in found)]
    return {name: statistics.fmean(values[name] for values in found) for name in sorted(names)}


def _horizon(group: Group) -> tuple[float | None, list[str]]:
    """Tokens trained over those of the slowest plateau exit, and what there is to say about it."""
    exits = [(run.tokens_at("plateau_exit_step"), v.label, run) for v in group.variants for run in v.runs]
    stuck = [f"{label} (seed {run.seed})" for exit_tokens, label, run in exits if exit_tokens is None]
    if stuck:
        return None, [
            f"Too early to read: {_first(stuck)} never left the plateau near the unigram loss. A race is "
            f"read after {HORIZON} times the slowest exit."
        ]
    slowest, label, run = max(exits, key=lambda item: (item[0], item[1]))
    trained = group.conditions["tokens"]
    if trained >= HORIZON * slowest:
        return trained / slowest, []
    return trained / slowest, [
        f"Too early to read: trained on {trained:,.0f} tokens, less than {HORIZON} times the slowest plateau exit "
        f"({slowest:,.0f} tokens: {label}, seed {run.seed}, step {run.summary['plateau_exit_step']:,})."
    ]


def _fallen(rows: Sequence[Row]) -> list[str]:
    fallen = [f"{row.label} (seed {run.seed})" for row in rows for run in row.fallen_off or ()]
    if not fallen:
        return []
    told = sum(len(row.variant.runs) for row in rows if row.fallen_off is not None)
    return [
        f"{len(fallen)} of {told} runs fell off: more than {FALL_OFF} nats behind the other seeds of their variant "
        f"after half of the tokens: {_first(fallen)}."
    ]


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return "; ".join(names[:3]) + more
