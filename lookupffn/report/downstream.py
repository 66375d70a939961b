"""What each feed-forward scores on labelled tasks, beside the perplexity that it was tuned from.

A variant is the fine-tuning runs of one task that differ by their seeds alone, those of fine-tuning and those of the
pretraining runs that they started from. Scores are compared in pairs of equal seeds; the tables (downstream/table.md,
downstream/table.csv and what the terminal shows of them) state them in percent.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from lookupffn.config.data import OWN_TASK
from lookupffn.report.fine_tuned import FineTuned
from lookupffn.report.groups import label_of, short_number
from lookupffn.report.inference_times import InferenceTime, InferenceTimes
from lookupffn.report.runs import LeftOut
from lookupffn.report.significance import Difference, Spread, difference, spread
from lookupffn.report.tables import aligned, csv_of, escaped, interval, known, shown_spread, table

AVERAGE = "average of "


@dataclass(frozen=True)
class Score:
    """One variant on one task. What is not known is None.

    Attributes:
        task: its name.
        label: the variant's.
        ffn: the feed-forward's name.
        is_pretrained: whether it started from a model.
        settings: of fine-tuning.
        scores: a run's score by its seeds (see ``FineTuned``).
        metrics: each metric's values, in the order of the scores.
        perplexity: of the pretraining runs.
        pretraining_tokens: of the same.
        flops, flops_ratio: feed-forward FLOPs a token, and GEMM's over them.
        time: measured inference time.
        runs: folders.
        against: the score less that of the best pretrained gemm; None for that one itself.
        gain: the score less that of the same model not pretrained.
    """

    task: str
    label: str
    ffn: str
    is_pretrained: bool
    settings: Mapping[str, Any]
    scores: Mapping[tuple[int | None, int], float]
    metrics: Mapping[str, Sequence[float]]
    perplexity: Spread | None
    pretraining_tokens: float | None
    flops: float
    flops_ratio: float | None
    time: InferenceTime | None
    runs: tuple[Path, ...]
    against: Difference | None
    gain: Difference | None

    @property
    def median(self) -> float:
        """Median score."""
        return statistics.median(self.scores.values())

    @property
    def mean(self) -> float:
        """Mean score."""
        return statistics.fmean(self.scores.values())

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest score."""
        return min(self.scores.values()), max(self.scores.values())


def scores(tuned: Sequence[FineTuned], measured: InferenceTimes | None = None) -> tuple[list[Score], list[LeftOut]]:
    """Every variant on every task, and on the average of the tasks.

    Args:
        tuned: fine-tuning runs.
        measured: inference times, if known.

    Returns:
        By task, best median first; and runs left out because another one has their seeds.
    """
    tasks: dict[str, list[FineTuned]] = defaultdict(list)
    for run in _told_apart(tuned):
        tasks[run.task].append(run)
    found, left_out = [], []
    for name in sorted(tasks):
        own, repeats = _scores_of_task(tasks[name], measured)
        found.append(own)
        left_out += repeats
    # one of two that share their name would count twice
    # tasks that are somebody's own files are no part of an average over GLUE
    averaged = [own for own in found if not own[0].task.startswith(OWN_TASK) and not own[0].task.endswith(")")]
    if len(averaged) > 1:
        found.append(_averages(averaged))
    ordered = [_compared(own) for own in found if own]
    return [score for own in ordered for score in sorted(own, key=lambda s: (-s.median, s.label))], left_out


def _told_apart(tuned: Sequence[FineTuned]) -> list[FineTuned]:
    """Tasks of one name and other data get the fingerprint into their name."""
    prints: dict[str, set[str]] = defaultdict(set)
    for run in tuned:
        prints[run.task].add(_fingerprint(run))
    return [
        run if len(prints[run.task]) == 1 else replace(run, task=f"{run.task} ({_fingerprint(run)[:8]})")
        for run in tuned
    ]


def _fingerprint(run: FineTuned) -> str:
    return str(run.summary.get("data_fingerprint"))


def _scores_of_task(tuned: Sequence[FineTuned], measured: InferenceTimes | None) -> tuple[list[Score], list[LeftOut]]:
    members: dict[Hashable, list[FineTuned]] = defaultdict(list)
    for run in tuned:
        members[run.ffn, frozenset(run.variant.items())].append(run)
    alike: dict[Hashable, list[dict[str, Any]]] = defaultdict(list)
    for same in members.values():
        alike[same[0].ffn, _start(same[0])].append(same[0].variant)
    found, left_out = [], []
    for same in members.values():
        kept: dict[Hashable, FineTuned] = {}
        for run in sorted(same, key=lambda run: str(run.path)):
            first = kept.setdefault(run.seeds, run)
            if first is not run:
                left_out.append(LeftOut(run.path, f"repeats the seeds of {first.path}"))
        first = same[0]
        label = label_of(first.ffn, first.variant, alike[first.ffn, _start(first)]) + _start(first)
        found.append(_score(label, list(kept.values()), measured))
    return found, left_out


def _start(run: FineTuned) -> str:
    """The end of a label."""
    if run.origin is None:
        return ", not pretrained"
    return "" if run.pretrained is not None or run.record else f", from {run.origin} (not found)"


def _score(label: str, runs: Sequence[FineTuned], measured: InferenceTimes | None) -> Score:
    first = runs[0]
    perplexities = {run.origin: run.perplexity for run in runs if run.perplexity is not None}
    flops, gemm = first.summary["ffn_flops_per_token"], first.summary["gemm_ffn_flops_per_token"]
    names = [name for name in first.metrics if all(name in run.metrics for run in runs)]
    return Score(
        task=first.task,
        label=label,
        ffn=first.ffn,
        is_pretrained=first.origin is not None,
        settings=first.settings,
        scores={run.seeds: run.score for run in runs},
        metrics={name: [run.metrics[name] for run in runs] for name in names},
        perplexity=spread(list(perplexities.values())) if perplexities else None,
        pretraining_tokens=first.pretraining_tokens,
        flops=flops,
        flops_ratio=gemm / flops if flops else None,
        time=None if measured is None else measured.of(first),
        runs=tuple(run.path for run in runs),
        against=None,
        gain=None,
    )


def _averages(tasks: Sequence[Sequence[Score]]) -> list[Score]:
    """The mean over tasks of the variants that have them all, for the seeds that they have on all."""
    name = AVERAGE + ", ".join(own[0].task for own in tasks)
    by_label = [{score.label: score for score in own} for own in tasks]
    found = []
    for label, first in by_label[0].items():
        own = [scores.get(label) for scores in by_label]
        if None in own:
            continue
        seeds = [seeds for seeds in first.scores if all(seeds in score.scores for score in own)]
        if seeds:
            means = {seed: statistics.fmean(score.scores[seed] for score in own) for seed in seeds}
            runs = tuple(path for score in own for path in score.runs)
            found.append(replace(first, task=name, scores=means, metrics={}, runs=runs))
    return found


def _compared(own: Sequence[Score]) -> list[Score]:
    """With the differences to the best pretrained gemm, and to the same model not pretrained."""
    references = [s for s in own if s.ffn == "gemm" and s.is_pretrained] or [s for s in own if s.ffn == "gemm"]
    gemm = max(references, key=lambda s: (s.mean, s.label), default=None)
    found = []
    for score in own:
        against = None if gemm is None or score is gemm else difference(score.scores, gemm.scores)
        fresh = [s for s in own if not s.is_pretrained and s.ffn == score.ffn and s.settings == score.settings
                 and s.flops == score.flops]  # fmt: skip
        gain = None
        if score.is_pretrained and len(fresh) == 1:
            gain = difference(_by_own_seed(score), _by_own_seed(fresh[0]))
        found.append(replace(score, against=against, gain=gain))
    return found


def _by_own_seed(score: Score) -> dict[int, float]:
    """Scores by the seed of fine-tuning, means over those of pretraining."""
    values: dict[int, list[float]] = defaultdict(list)
    for (_, seed), value in score.scores.items():
        values[seed].append(value)
    return {seed: statistics.fmean(own) for seed, own in values.items()}


def markdown(scores: Sequence[Score], left_out: Sequence[LeftOut]) -> str:
    """The scores as a person reads them, a table a task."""
    parts = [
        "# Downstream\n\nScores are of the validation data after the last epoch, in percent: the median over runs, and "
        "the lowest and highest. A task's score is the mean of its metrics. Differences are means over the seeds that "
        "both have (those of pretraining and of fine-tuning), with their 95% t-interval; there is no verdict before "
        "two. gemm is the best pretrained one. The gain is over the same model not pretrained. Perplexity, FLOPs and "
        "time are those of the pretraining run and of all feed-forwards together.\n"
    ]
    for task, own in groupby(scores, key=lambda score: score.task):
        rows = [_cells(score) for score in own]
        parts.append(f"## {escaped(task)}\n\n{table(list(rows[0]), [list(row.values()) for row in rows])}")
    if left_out:
        parts.append("## Left out\n\n" + "".join(f"- {escaped(str(o.path))}: {o.why}\n" for o in left_out))
    return "\n".join(parts)


def _cells(score: Score) -> dict[str, str]:
    low, high = score.range
    verdict = "itself" if score.ffn == "gemm" and score.against is None else ""
    return {
        "feed-forward": score.label,
        "runs": str(len(score.scores)),
        "median": f"{100 * score.median:.2f}",
        "lowest to highest": f"{100 * low:.2f} to {100 * high:.2f}",
        "metrics": ", ".join(f"{n} {100 * statistics.median(v):.2f}" for n, v in score.metrics.items()),
        "less gemm's": _mean(score.against),
        "95% interval": _percent(score.against),
        "against gemm": verdict if score.against is None else score.against.verdict(lower_is_better=False),
        "gain from pretraining": _mean(score.gain),
        "95% interval of the gain": _percent(score.gain),
        "perplexity": "" if score.perplexity is None else shown_spread(score.perplexity, ",.2f"),
        "pretrained on": "" if score.pretraining_tokens is None else f"{short_number(score.pretraining_tokens)} tokens",
        "FFN MFLOP a token": f"{score.flops / 1e6:.3f}",
        "times fewer than GEMM": known(score.flops_ratio, ".2f"),
        "CPU µs a token": known(None if score.time is None else score.time.us_per_token, ".3g"),
        "times faster than GEMM": known(None if score.time is None else score.time.ratio, ".2f"),
    }


def _mean(found: Difference | None) -> str:
    return "" if found is None else f"{100 * found.mean:+.2f}"


def _percent(found: Difference | None) -> str:
    if found is None or found.low is None or found.high is None:
        return ""
    return interval(Difference(100 * found.mean, 100 * found.low, 100 * found.high, found.p, found.pairs), "+.2f")


def csv_text(scores: Sequence[Score]) -> str:
    """Every figure at full precision, a line a task and variant; scores are not in percent."""
    return csv_of([_record(score) for score in scores])


def _record(score: Score) -> dict[str, Any]:
    low, high = score.range
    record: dict[str, Any] = {
        "task": score.task,
        "variant": score.label,
        "ffn": score.ffn,
        "pretrained": score.is_pretrained,
        "n": len(score.scores),
        "score_median": score.median,
        "score_mean": score.mean,
        "score_std": statistics.stdev(score.scores.values()) if len(score.scores) > 1 else None,
        "score_lowest": low,
        "score_highest": high,
    }
    for name, found in (("less_gemm", score.against), ("gain_from_pretraining", score.gain)):
        record[name] = found and found.mean
        record[f"{name}_low"] = found and found.low
        record[f"{name}_high"] = found and found.high
        record[f"{name}_p"] = found and found.p
    record |= {
        "verdict_against_gemm": score.against and score.against.verdict(lower_is_better=False),
        "validation_perplexity": score.perplexity and score.perplexity.mean,
        "pretraining_tokens": score.pretraining_tokens,
        "ffn_flops_per_token": score.flops,
        "gemm_flops_ratio": score.flops_ratio,
        "cpu_us_per_token": score.time and score.time.us_per_token,
        "cpu_gemm_ratio": score.time and score.time.ratio,
    }
    record |= {f"median.{name}": statistics.median(values) for name, values in score.metrics.items()}
    return record | {"runs": " ".join(map(str, score.runs))}


def overview(scores: Sequence[Score]) -> str:
    """A few columns for the terminal, a table a task."""
    text = ""
    for task, own in groupby(scores, key=lambda score: score.task):
        rows = [["feed-forward", "runs", "median", "lowest to highest", "perplexity", "against gemm"]]
        for score in own:
            cells = _cells(score)
            rows.append([cells[name] for name in rows[0]])
        text += f"\n{task}\n{aligned(rows)}"
    return text
