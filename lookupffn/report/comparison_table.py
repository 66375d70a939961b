"""table.md and table.csv."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from lookupffn.report.figures import HORIZON, UNKNOWN, Comparison, Difference, Row, Spread
from lookupffn.report.groups import Group
from lookupffn.report.runs import LeftOut, perplexity

_COLUMNS = (
    "#",
    "feed-forward",
    "seeds",
    "perplexity",
    "loss (nats)",
    "share of GEMM's gain",
    "FFN MFLOP a token",
    "times fewer than GEMM",
    "parameters",
    "in FFNs",
    "FFN parameters touched",
    "CPU µs a token",
    "times faster than GEMM",
    "training tokens/s",
    "plateau left at step",
    "Pareto",
)


def markdown(comparison: Comparison, groups: Sequence[Group], left_out: Sequence[LeftOut]) -> str:
    """The comparison as a person reads it.

    Args:
        comparison: the figures.
        groups: all groups, this one among them.
        left_out: folders that are in no comparison.
    """
    parts = [_heading(comparison, groups)]
    parts += [f"> **Warning.** {warning}\n" for warning in comparison.warnings]
    parts.append(_table(_COLUMNS, [_cells(row, comparison) for row in comparison.rows]))
    parts.append(_explanation(comparison))
    parts.append(_differences(comparison))
    parts.append(_statistics(comparison))
    parts.append("## Runs\n\n" + "".join(f"- {_runs(row)}\n" for row in comparison.rows))
    if left_out:
        parts.append("## Left out\n\n" + "".join(f"- {_escaped(str(o.path))}: {o.why}\n" for o in left_out))
    return "\n".join(part for part in parts if part)


def _heading(comparison: Comparison, groups: Sequence[Group]) -> str:
    conditions, runs = comparison.group.conditions, comparison.group.runs
    summary = runs[0].summary
    text = (
        f"# {comparison.group.name}\n\n"
        f"{_count(len(comparison.rows), 'variant')}, {_count(len(runs), 'run')}: model {summary['model']} "
        f"({conditions.get('model.num_hidden_layers')} layers of {conditions.get('model.hidden_size')}), data "
        f"{summary['data']}, sequences of {conditions.get('sequence_length')}, {conditions['tokens']:,.0f} tokens "
        f"trained, {conditions['masked_validation_tokens']:,} masked validation tokens scored. Guessing by frequency: "
        f"perplexity {perplexity(summary['unigram_loss']):,.1f}.\n"
    )
    if len(groups) > 1:
        text += f"\nOne of {len(groups)} groups that cannot be compared with each other.\n"
    return text


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _cells(row: Row, comparison: Comparison) -> list[str]:
    fronts = [name for name, on in (("FLOPs", row.flops_front), ("CPU", row.cpu_front)) if on]
    return [
        str(row.number),
        row.label,
        str(len(row.variant.runs)),
        _spread(row.perplexity, ",.2f"),
        _spread(row.loss, ".4f"),
        _known(row.share, ".0%"),
        f"{row.flops / 1e6:.3f}",
        _known(row.flops_ratio, ".2f"),
        f"{row.parameters:,.0f}",
        f"{row.ffn_parameters:,.0f}",
        _known(row.ffn_parameters_touched, ",.0f"),
        _known(row.cpu_us, ".3g"),
        _known(row.cpu_ratio, ".2f"),
        f"{row.tokens_per_s:,.0f}",
        "never" if row.exit_step is None else f"{row.exit_step:,}",
        ", ".join(fronts),
    ]


def _spread(value: Spread, form: str) -> str:
    return f"{value.mean:{form}}" + ("" if value.std is None else f" ± {value.std:{form}}")


def _known(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; numbers stand right."""
    rule = ["---" if column in ("feed-forward", "Pareto") else "---:" for column in columns]
    lines = [columns, rule, *([_escaped(cell) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _explanation(comparison: Comparison) -> str:
    """What the columns mean, as far as their names do not say it."""
    runs = comparison.group.runs
    lines = ["± is the sample standard deviation over seeds. FLOPs, time and parameters are of all layers together."]
    if comparison.gemm is None or comparison.none is None:
        absent = [
            name
            for name, row in (("gemm at the model's own intermediate size", comparison.gemm), ("none", comparison.none))
            if row is None
        ]
        lines.append(f"The share of GEMM's gain needs a run of {' and of '.join(absent)}.")
    elif comparison.gemm.share is None:
        lines.append("GEMM gained nothing over no feed-forward, so there is no share of its gain.")
    else:
        lines.append(
            f"Share of GEMM's gain: (loss of {comparison.none.label} - loss) / (loss of {comparison.none.label} - loss "
            f"of {comparison.gemm.label}), in nats."
        )
    if comparison.horizon is not None:
        lines.append(
            f"Trained for {comparison.horizon:.1f} times the slowest plateau exit; a race is read at {HORIZON} times "
            "or more."
        )
    machines = sorted({f"{r.summary.get('device_name')} (threads: {r.summary.get('threads')})" for r in runs})
    lines.append(f"Training speed as it was on {'; '.join(machines)}.")
    if len(machines) > 1:
        lines.append("Speeds of different machines do not compare.")
    if comparison.latency is not None:
        lines.append(f"CPU times: {comparison.latency}.")
    return _escaped(" ".join(lines)) + "\n"


def _differences(comparison: Comparison) -> str:
    references = [("gemm", comparison.gemm), ("best lookup", comparison.lookup)]
    references = [(name, row) for name, row in references if row is not None]
    if not references or len(comparison.rows) < 2:
        return ""
    columns, lines = ["#", "feed-forward"], []
    for name, _ in references:
        columns += [f"loss less {name}'s (nats)", "spread over seeds", f"against {name}"]
    for row in comparison.rows:
        cells = [str(row.number), row.label]
        for _, other in references:
            cells += ["", "", "itself"] if row is other else _difference(comparison.difference(row, other))
        lines.append(cells)
    named = "; ".join(f"{name} is {row.label}" for name, row in references)
    text = (
        f"## Differences\n\n{_escaped(named)}. The spread is the pooled sample standard deviation of the two variants' "
        "seeds; where either has a single seed, that of all variants here with several. A difference within it is a "
        "tie."
    )
    ffns = [row.ffn for row in comparison.rows]
    if any(ffns.count(row.ffn) > 1 for _, row in references):
        text += " The best of several settings was chosen by this same loss, which flatters it a little."
    return f"{text}\n\n{_table(columns, lines)}"


def _difference(found: Difference) -> list[str]:
    return [f"{found.nats:+.4f}", _known(found.spread, ".4f"), found.verdict]


def _statistics(comparison: Comparison) -> str:
    names = list(dict.fromkeys(name for row in comparison.rows for name in row.statistics))
    if not names:
        return ""
    rows = [
        [str(row.number), row.label, *(_known(row.statistics.get(name), ".4g") for name in names)]
        for row in comparison.rows
        if row.statistics
    ]
    return "## What the feed-forwards counted\n\n" + _table(["#", "feed-forward", *map(_escaped, names)], rows)


def _runs(row: Row) -> str:
    seeds = "; ".join(f"seed {run.seed}: {run.path}" for run in row.variant.runs)
    return _escaped(f"{row.number} {row.label}: {seeds}")


def csv_text(comparison: Comparison) -> str:
    """Every figure of table.md at full precision, a line a variant; blank is unknown."""
    lines = [_record(row, comparison) for row in comparison.rows]
    columns = list(dict.fromkeys(name for line in lines for name in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _record(row: Row, comparison: Comparison) -> dict[str, Any]:
    record = {
        "number": row.number,
        "variant": row.label,
        "ffn": row.ffn,
        "settings": json.dumps(dict(row.variant.settings), sort_keys=True),
        "seeds": " ".join(str(run.seed) for run in row.variant.runs),
        "n": len(row.variant.runs),
        "validation_perplexity": row.perplexity.mean,
        "validation_perplexity_std": row.perplexity.std,
        "validation_loss": row.loss.mean,
        "validation_loss_std": row.loss.std,
        "share_of_gemm_gain": row.share,
        "ffn_flops_per_token": row.flops,
        "gemm_flops_ratio": row.flops_ratio,
        "parameters": row.parameters,
        "ffn_parameters": row.ffn_parameters,
        "parameters_touched": row.parameters_touched,
        "ffn_parameters_touched": row.ffn_parameters_touched,
        "cpu_us_per_token": row.cpu_us,
        "cpu_gemm_ratio": row.cpu_ratio,
        "tokens_per_s": row.tokens_per_s,
        "plateau_exit_step": row.exit_step,
        "plateau_exit_tokens": row.exit_tokens,
        "tokens": comparison.group.conditions["tokens"],
        "tokens_over_slowest_exit": comparison.horizon,
        "pareto_flops": row.flops_front,
        "pareto_cpu": row.cpu_front,
    }
    for name, other in (("gemm", comparison.gemm), ("best_lookup", comparison.lookup)):
        found = None if other is None or row is other else comparison.difference(row, other)
        record[f"loss_less_{name}"] = found and found.nats
        record[f"spread_against_{name}"] = found and found.spread
        record[f"verdict_against_{name}"] = found and found.verdict
    record |= {f"statistics.{name}": value for name, value in row.statistics.items()}
    record["runs"] = " ".join(str(run.path) for run in row.variant.runs)
    return record


def overview(comparison: Comparison) -> str:
    """A few columns for the terminal."""
    rows = [["feed-forward", "seeds", "perplexity", "FFN MFLOP", "GEMM's gain", "against gemm"]]
    for row in comparison.rows:
        verdict = ""
        if comparison.gemm is not None and row is not comparison.gemm:
            verdict = comparison.difference(row, comparison.gemm).verdict
        rows.append(
            [
                row.label,
                str(len(row.variant.runs)),
                _spread(row.perplexity, ",.2f"),
                f"{row.flops / 1e6:.3f}",
                _known(row.share, ".0%"),
                "unknown noise" if verdict == UNKNOWN else verdict,
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )
    return "".join(f"{line.rstrip()}\n" for line in lines)
