"""downstream/table.md, downstream/table.csv, and what the terminal shows of them. Scores are in percent."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from lookupffn.report.downstream import Score
from lookupffn.report.groups import short_number
from lookupffn.report.runs import LeftOut
from lookupffn.report.significance import Difference
from lookupffn.report.tables import aligned, csv_of, escaped, interval, known, shown_spread, table


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
