"""The short table at the end of a run and of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# the last part of the keys in summary.json that hold a task's scores
TASK_METRICS = ("_accuracy", "_f1", "_matthews", "_pearson", "_spearman")


def run_table(summary: Mapping[str, Any], folder: object) -> str:
    """What a finished run came to.

    Args:
        summary: the contents of summary.json.
        folder: where the run is.
    """
    rows = [
        ("feed-forward", describe_ffn(summary["ffn"], summary["ffn_options"])),
        *(_task_rows(summary) if "task" in summary else _pretraining_rows(summary)),
        ("FFN MFLOP a token", _flops(summary)),
        ("parameters", f"{summary['ffn_parameters']:,} in FFNs, {summary['parameters']:,} in all"),
        ("trained on", f"{summary['tokens']:,} tokens in {summary['steps']:,} steps"),
        ("speed", f"{summary['tokens_per_s']:,.0f} tokens/s on {summary['device']}"),
        ("time", duration(summary["wall_clock_s"])),
        ("folder", str(folder)),
    ]
    return render(rows)


def _pretraining_rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    exit_step = summary["plateau_exit_step"]
    return [
        ("validation perplexity", _perplexity(summary)),
        ("plateau left at step", "not yet" if exit_step is None else f"{exit_step:,}"),
    ]


def _task_rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    floor = ", ".join(f"{name} {value:.4f}" for name, value in summary["floor"].items() if value is not None)
    scores = [
        (key.replace("_", " "), f"{value:.4f}" if value is not None else "undefined")
        for key, value in summary.items()
        if key.startswith("validation_") and key.endswith(TASK_METRICS)
    ]
    return [
        ("task", f"{summary['task']}{'' if summary['official_splits'] else ' (not the official splits)'}"),
        ("pretrained from", summary["pretrained_from"] or "nothing"),
        *scores,
        ("the same answer for all", floor or "undefined"),
    ]


def evaluation_table(result: Mapping[str, Any]) -> str:
    """What an evaluation found.

    Args:
        result: what evaluate.py writes as JSON.
    """
    rows = [
        ("feed-forward", describe_ffn(result["ffn"], result["ffn_options"])),
        ("validation perplexity", _perplexity(result)),
        ("validation loss", f"{result['validation_loss']:.6f} nats"),
        ("scored", f"{result['masked_validation_tokens']:,} masked tokens of {result['data']}"),
        ("in", f"{_count(result['validation_sequences'], 'sequence')}, {result['validation_tokens']:,} tokens"),
        ("sequence length", _length(result)),
        ("FFN MFLOP a token", _flops(result)),
        ("parameters", f"{result['ffn_parameters']:,} in FFNs, {result['parameters']:,} in all"),
        ("speed", f"{result['tokens_per_s']:,.0f} tokens/s on {result['device']}"),
        ("checkpoint", str(result["checkpoint"])),
    ]
    return render(rows)


def render(rows: list[tuple[str, str]]) -> str:
    """Two aligned columns between rules."""
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    rule = "-" * min(80, max(map(len, lines)))
    return "\n".join([rule, *lines, rule]) + "\n"


def describe_ffn(name: str, options: Mapping[str, Any]) -> str:
    """lookup (num_tables 32, table_size 256, ...)."""
    shown = ", ".join(f"{key} {value}" for key, value in options.items() if value is not None)
    return f"{name} ({shown})" if shown else name


def duration(seconds: float) -> str:
    """1 h 02 min, 4 min 05 s, 12 s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _length(result: Mapping[str, Any]) -> str:
    assumed = " (assumed: the folder belongs to no run; model.sequence_length=... sets it)"
    return f"{result['sequence_length']}{assumed if result['sequence_length_assumed'] else ''}"


def _perplexity(values: Mapping[str, Any]) -> str:
    unigram = values.get("unigram_perplexity")
    beside = "" if unigram is None else f" (unigram: {unigram:,.1f})"
    own = values["validation_perplexity"]
    # null in a file that had to do without infinity
    return f"{'inf' if own is None else f'{own:,.2f}'}{beside}"


def _flops(values: Mapping[str, Any]) -> str:
    own, gemm = values["ffn_flops_per_token"], values["gemm_ffn_flops_per_token"]
    ratio = f"{gemm / own:.1f} times fewer than GEMM's {gemm / 1e6:.3f}" if own else "none"
    return f"{own / 1e6:.3f} in all layers" + ("" if own == gemm else f", {ratio}")
