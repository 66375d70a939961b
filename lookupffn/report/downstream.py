"""What each feed-forward scores on labelled tasks, beside the perplexity that it was tuned from.

A variant is the fine-tuning runs of one task that differ by their seeds alone, those of fine-tuning and those of the
pretraining runs that they started from. Scores are compared in pairs of equal seeds.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lookupffn.report.fine_tuned import FineTuned
from lookupffn.report.groups import label_of
from lookupffn.report.inference_times import InferenceTime, InferenceTimes
from lookupffn.report.runs import LeftOut
from lookupffn.report.significance import Difference, Spread, difference, spread

AVERAGE = "average of "
# tasks that are somebody's own files, which are no part of an average over GLUE
_OWN = "classification"


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
    averaged = [own for own in found if not own[0].task.startswith(_OWN) and not own[0].task.endswith(")")]
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
