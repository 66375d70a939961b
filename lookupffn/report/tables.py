"""table.md, table.csv and the table for the terminal."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from lookupffn.report.comparison import HORIZON, SECOND_HORIZON, Comparison, Row
from lookupffn.report.groups import Group
from lookupffn.report.loss_curves import FALL_OFF
from lookupffn.report.runs import LeftOut, perplexity
from lookupffn.report.significance import UNKNOWN, Difference, Spread

TEXT_COLUMNS = ("feed-forward", "Pareto", "task", "variant")


def markdown(comparison: Comparison, groups: Sequence[Group], left_out: Sequence[LeftOut]) -> str:
    """The comparison as a person reads it.

    Args:
        comparison: the figures.
        groups: all groups, this one among them.
        left_out: folders that are in no comparison.
    """
    parts = [_heading(comparison, groups)]
    parts += [f"> **Warning.** {warning}\n" for warning in comparison.warnings]
    parts.append(_figures(comparison))
    parts.append(_explanation(comparison))
    parts.append(_differences(comparison))
    parts.append(_statistics(comparison))
    parts.append("## Runs\n\n" + "".join(f"- {_runs(row)}\n" for row in comparison.rows))
    if left_out:
        parts.append("## Left out\n\n" + "".join(f"- {escaped(str(o.path))}: {o.why}\n" for o in left_out))
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


def _figures(comparison: Comparison) -> str:
    """The main table."""
    cells = [_cells(row, comparison) for row in comparison.rows]
    return table(list(cells[0]), [list(row.values()) for row in cells])


def _cells(row: Row, comparison: Comparison) -> dict[str, str]:
    fronts = [name for name, on in (("FLOPs", row.flops_front), ("CPU", row.cpu_front)) if on]
    cells = {
        "#": str(row.number),
        "feed-forward": row.label,
        "seeds": str(len(row.variant.runs)),
        "perplexity": shown_spread(row.perplexity, ",.2f"),
        "loss (nats)": shown_spread(row.loss, ".4f"),
        "training loss": "" if row.training_loss is None else shown_spread(row.training_loss, ".4f"),
        "share of GEMM's gain": known(row.share, ".0%"),
        "FFN MFLOP a token": f"{row.flops / 1e6:.3f}",
        "times fewer than GEMM": known(row.flops_ratio, ".2f"),
        "parameters": f"{row.parameters:,.0f}",
        "in FFNs": f"{row.ffn_parameters:,.0f}",
        "FFN parameters touched": known(row.ffn_parameters_touched, ",.0f"),
        "CPU µs a token": known(row.cpu_us, ".3g"),
        "times faster than GEMM": known(row.cpu_ratio, ".2f"),
    }
    for machine, time in zip(comparison.projections, row.projected, strict=True):
        cells[f"µs a token on {machine.device} (projected)"] = known(None if time is None else time.us_per_token, ".3g")
        cells[f"times faster than GEMM on {machine.device} (projected)"] = known(
            None if time is None else time.ratio, ".2f"
        )
    cells["training tokens/s"] = f"{row.tokens_per_s:,.0f}"
    cells["plateau left at step"] = "never" if row.exit_step is None else f"{row.exit_step:,}"
    if any(other.second_fall_step is not None for other in comparison.rows):
        cells["second fall at step"] = known(row.second_fall_step, ",.0f")
    cells["fell off"] = "" if row.fallen_off is None else f"{len(row.fallen_off)} of {len(row.variant.runs)}"
    return {**cells, "Pareto": ", ".join(fronts)}


def shown_spread(value: Spread, form: str) -> str:
    """49.40 ± 0.49."""
    return f"{value.mean:{form}}" + ("" if value.std is None else f" ± {value.std:{form}}")


def known(value: float | None, form: str) -> str:
    """A number, or nothing where it is not known."""
    return "" if value is None else f"{value:{form}}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; numbers stand right."""
    rule = ["---" if column in TEXT_COLUMNS else "---:" for column in columns]
    lines = [columns, rule, *([escaped(cell) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def escaped(text: str) -> str:
    """Text that stays within a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def _explanation(comparison: Comparison) -> str:
    """What the columns mean, as far as their names do not say it."""
    runs = comparison.group.runs
    lines = [
        "± is the sample standard deviation over seeds. FLOPs, time and parameters are of all layers together. The "
        "training loss is the mean over the last tenth of the tokens. A run fell off where its validation loss after "
        f"half of the tokens is more than {FALL_OFF} nats behind the median of its variant's other seeds."
    ]
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
    lines += [f"Projected times: {machine.how}." for machine in comparison.projections]
    if comparison.projections:
        lines.append(
            "Only lookup and gemm are projected part by part; the others by their FLOPs and the parameters they touch "
            "at the rate of GEMM's products, which flatters any that a library computes slower (see their CPU time)."
        )
    return escaped(" ".join(lines)) + "\n"


def _differences(comparison: Comparison) -> str:
    references = [("gemm", comparison.gemm), ("best lookup", comparison.lookup)]
    references = [(name, row) for name, row in references if row is not None]
    if not references or len(comparison.rows) < 2:
        return ""
    columns, lines = ["#", "feed-forward"], []
    for name, _ in references:
        columns += [f"loss less {name}'s (nats)", "95% interval", f"training loss less {name}'s", f"against {name}"]
    for row in comparison.rows:
        cells = [str(row.number), row.label]
        for _, other in references:
            cells += ["", "", "", "itself"] if row is other else _difference(comparison, row, other)
        lines.append(cells)
    named = "; ".join(f"{name} is {row.label}" for name, row in references)
    text = (
        f"## Differences\n\n{escaped(named)}. Seeds that both variants have are compared in pairs (the same data in "
        "the same order); where they share fewer than two, the interval is Welch's. It is the 95% t-interval of the "
        "difference: better or worse where it excludes zero, else a tie. There is no verdict before both sides have "
        f"two seeds and were trained for {HORIZON} times their slowest plateau exit and, where it was recorded, "
        f"{SECOND_HORIZON} times their slowest second fall. A variant whose training loss is "
        "behind as well underfits; one whose validation loss alone is behind generalises worse."
    )
    ffns = [row.ffn for row in comparison.rows]
    if any(ffns.count(row.ffn) > 1 for _, row in references):
        text += " The best of several settings was chosen by this same loss, which flatters it a little."
    return f"{text}\n\n{table(columns, lines)}"


def _difference(comparison: Comparison, row: Row, other: Row) -> list[str]:
    found, training = comparison.difference(row, other), comparison.training_difference(row, other)
    return [
        f"{found.mean:+.4f}",
        interval(found),
        known(None if training is None else training.mean, "+.4f"),
        comparison.verdict(row, other),
    ]


def interval(found: Difference, form: str = "+.4f") -> str:
    """-0.0450 to +0.0300, or nothing where seeds are too few."""
    return "" if found.low is None else f"{found.low:{form}} to {found.high:{form}}"


def _statistics(comparison: Comparison) -> str:
    names = list(dict.fromkeys(name for row in comparison.rows for name in row.statistics))
    if not names:
        return ""
    rows = [
        [str(row.number), row.label, *(known(row.statistics.get(name), ".4g") for name in names)]
        for row in comparison.rows
        if row.statistics
    ]
    return "## What the feed-forwards counted\n\n" + table(["#", "feed-forward", *map(escaped, names)], rows)


def _runs(row: Row) -> str:
    seeds = "; ".join(f"seed {run.seed}: {run.path}" for run in row.variant.runs)
    return escaped(f"{row.number} {row.label}: {seeds}")


def csv_text(comparison: Comparison) -> str:
    """Every figure of table.md at full precision, a line a variant; blank is unknown."""
    return csv_of([_record(row, comparison) for row in comparison.rows])


def csv_of(records: Sequence[dict[str, Any]]) -> str:
    """Records as CSV with a header; what one of them lacks is blank."""
    columns = list(dict.fromkeys(name for record in records for name in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
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
        "training_loss": row.training_loss and row.training_loss.mean,
        "training_loss_std": row.training_loss and row.training_loss.std,
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
        "second_fall_step": row.second_fall_step,
        "fell_off": None if row.fallen_off is None else len(row.fallen_off),
        "tokens": comparison.group.conditions["tokens"],
        "tokens_over_slowest_exit": comparison.horizon,
        "pareto_flops": row.flops_front,
        "pareto_cpu": row.cpu_front,
    }
    for name, other in (("gemm", comparison.gemm), ("best_lookup", comparison.lookup)):
        known_other = other is not None and row is not other
        found = comparison.difference(row, other) if known_other else None
        training = comparison.training_difference(row, other) if known_other else None
        record[f"loss_less_{name}"] = found and found.mean
        record[f"low_against_{name}"] = found and found.low
        record[f"high_against_{name}"] = found and found.high
        record[f"p_against_{name}"] = found and found.p
        record[f"pairs_with_{name}"] = found and found.pairs
        record[f"training_loss_less_{name}"] = training and training.mean
        record[f"verdict_against_{name}"] = comparison.verdict(row, other) if known_other else None
    for machine, time in zip(comparison.projections, row.projected, strict=True):
        record[f"projected_us_per_token.{machine.device}"] = time and time.us_per_token
        record[f"projected_gemm_ratio.{machine.device}"] = time and time.ratio
    record |= {f"statistics.{name}": value for name, value in row.statistics.items()}
    record["runs"] = " ".join(str(run.path) for run in row.variant.runs)
    return record


def overview(comparison: Comparison) -> str:
    """A few columns for the terminal, verdicts against GEMM or, without it, against the best lookup."""
    gains = any(row.share is not None for row in comparison.rows)
    other = comparison.lookup if comparison.gemm is None else comparison.gemm
    head = ["feed-forward", "seeds", "perplexity", "FFN MFLOP", *(["GEMM's gain"] if gains else [])]
    if other is not None and len(comparison.rows) > 1:
        head.append("against gemm" if other is comparison.gemm else "against best lookup")
    rows = [head]
    for row in comparison.rows:
        cells = [
            row.label,
            str(len(row.variant.runs)),
            shown_spread(row.perplexity, ",.2f"),
            f"{row.flops / 1e6:.3f}",
            *([known(row.share, ".0%")] if gains else []),
        ]
        if len(cells) < len(head):
            verdict = "" if row is other else comparison.verdict(row, other)
            cells.append("unknown noise" if verdict == UNKNOWN else verdict)
        rows.append(cells)
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table for the terminal, the first column to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )
    return "".join(f"{line.rstrip()}\n" for line in lines)
