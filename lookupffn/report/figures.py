"""The numbers of a comparison: means and spreads over seeds, shares, the Pareto front, who is better than whom.

Losses are in nats a masked token; a spread is a sample standard deviation over seeds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from lookupffn.report.groups import Group, Variant
from lookupffn.report.latency import Latencies
from lookupffn.report.runs import Run, is_number

# a race is read where training went on for this many times the slowest plateau exit
HORIZON = 3
BETTER, WORSE, TIE, UNKNOWN = "better", "worse", "tie", "one seed: unknown noise"


@dataclass(frozen=True)
class Spread:
    """A mean over seeds, and the sample standard deviation (None with one seed)."""

    mean: float
    std: float | None


@dataclass(frozen=True)
class Row:
    """One variant's figures. What is not known is None.

    Attributes:
        number: its place in the table, from 1.
        variant: whose they are.
        loss, perplexity: of the masked validation tokens.
        share: of GEMM's gain over no feed-forward: (loss_none - loss) / (loss_none - loss_gemm).
        flops: of all feed-forwards, a token at inference.
        flops_ratio: GEMM's FLOPs at the model's intermediate size over these.
        parameters, ffn_parameters: in all, and in feed-forwards.
        parameters_touched, ffn_parameters_touched: of these, what one token reads.
        cpu_us: microseconds a token of all feed-forwards on a CPU.
        cpu_ratio: GEMM's time over it.
        tokens_per_s: in training, mean over seeds.
        exit_step, exit_tokens: of the seed that left the plateau last; None where one never did.
        flops_front, cpu_front: on the Pareto front of perplexity against FLOPs, against CPU time.
        statistics: what the feed-forward counted in itself, means over seeds.
    """

    number: int
    variant: Variant
    loss: Spread
    perplexity: Spread
    share: float | None
    flops: float
    flops_ratio: float | None
    parameters: float
    ffn_parameters: float
    parameters_touched: float | None
    ffn_parameters_touched: float | None
    cpu_us: float | None
    cpu_ratio: float | None
    tokens_per_s: float
    exit_step: int | None
    exit_tokens: float | None
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


@dataclass(frozen=True)
class Difference:
    """How one variant's loss differs from another's.

    Attributes:
        nats: its mean loss less the other's, negative where it is better.
        spread: what seeds alone make of it (see ``difference``); None where nothing says.
        verdict: "better", "worse", "tie" or "one seed: unknown noise".
    """

    nats: float
    spread: float | None
    verdict: str


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
    """

    group: Group
    rows: tuple[Row, ...]
    gemm: Row | None
    none: Row | None
    lookup: Row | None
    horizon: float | None
    warnings: tuple[str, ...]
    latency: str | None

    def difference(self, row: Row, other: Row) -> Difference:
        """See the function ``difference``; the group's pool is that of its variants with several seeds."""
        return difference(row.variant, other.variant, self.group.variants)


def compare(group: Group, latencies: Latencies | None = None, *, sort: str = "flops") -> Comparison:
    """The figures of a group.

    Args:
        group: the runs.
        latencies: CPU times, if known.
        sort: "flops" (ascending, then perplexity) or "perplexity".
    """
    order: dict[str, Callable[[Row], tuple]] = {
        "flops": lambda row: (row.flops, row.loss.mean, row.label),
        "perplexity": lambda row: (row.loss.mean, row.flops, row.label),
    }
    rows = sorted((_row(variant, latencies) for variant in group.variants), key=order[sort])
    size = group.conditions.get("model.intermediate_size")
    gemm = _best(row for row in rows if row.ffn == "gemm" and row.variant.settings.get("ffn.intermediate_size") == size)
    none = _best(row for row in rows if row.ffn == "none")
    flops_front = _front([(row.flops, row.perplexity.mean) for row in rows])
    timed = [row for row in rows if row.cpu_us is not None]
    cpu_front = dict(
        zip((row.label for row in timed), _front([(row.cpu_us, row.perplexity.mean) for row in timed]), strict=True)
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
        tuple(warnings),
        latencies.how if latencies and timed else None,
    )


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation."""
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def difference(variant: Variant, other: Variant, pool: Sequence[Variant]) -> Difference:
    """Whether one variant's loss is lower than another's by more than their seeds differ among themselves.

    The spread is the pooled sample standard deviation of the two variants' seeds. Where one of them has a single seed
    it is that of all variants of ``pool`` that have several, and where there is none, nobody wins.

    Args:
        variant: whose loss.
        other: less whose loss.
        pool: the group's variants.
    """
    nats = statistics.fmean(_losses(variant)) - statistics.fmean(_losses(other))
    several = len(variant.runs) > 1 and len(other.runs) > 1
    noise = pooled_std([_losses(v) for v in ((variant, other) if several else pool)])
    if noise is None:
        return Difference(nats, None, UNKNOWN)
    if abs(nats) <= noise:
        return Difference(nats, noise, TIE)
    return Difference(nats, noise, BETTER if nats < 0 else WORSE)


def pooled_std(samples: Sequence[Sequence[float]]) -> float | None:
    """Square root of the samples' variances, each weighted by its size less one; None without two of any kind."""
    degrees = sum(len(sample) - 1 for sample in samples)
    if degrees == 0:
        return None
    return math.sqrt(sum(statistics.variance(s) * (len(s) - 1) for s in samples if len(s) > 1) / degrees)


def _losses(variant: Variant) -> list[float]:
    return [run.loss for run in variant.runs]


def _front(points: Sequence[tuple[float, float]]) -> list[bool]:
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


def _row(variant: Variant, latencies: Latencies | None) -> Row:
    """What does not need the other variants."""
    runs = variant.runs
    flops = _mean(runs, "ffn_flops_per_token")
    latency = latencies and latencies.of(runs[0])
    exits = [run.plateau_exit_tokens for run in runs]
    left = None not in exits
    return Row(
        number=0,
        variant=variant,
        loss=spread([run.loss for run in runs]),
        perplexity=spread([run.perplexity for run in runs]),
        share=None,
        flops=flops,
        flops_ratio=_mean(runs, "gemm_ffn_flops_per_token") / flops if flops else None,
        parameters=_mean(runs, "parameters"),
        ffn_parameters=_mean(runs, "ffn_parameters"),
        parameters_touched=_mean(runs, "parameters_touched"),
        ffn_parameters_touched=_mean(runs, "ffn_parameters_touched"),
        cpu_us=latency.us_per_token if latency else None,
        cpu_ratio=latency.ratio if latency else None,
        tokens_per_s=_mean(runs, "tokens_per_s"),
        exit_step=max(run.summary["plateau_exit_step"] for run in runs) if left else None,
        exit_tokens=max(exits) if left else None,
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
    exits = [(run.plateau_exit_tokens, v.label, run) for v in group.variants for run in v.runs]
    stuck = [f"{label} (seed {run.seed})" for exit_tokens, label, run in exits if exit_tokens is None]
    if stuck:
        more = f" and {len(stuck) - 3} more" if len(stuck) > 3 else ""
        return None, [
            f"Too early to read: {'; '.join(stuck[:3])}{more} never left the plateau near the unigram loss. A race is "
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
