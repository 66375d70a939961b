"""summary.json: everything a comparison needs to know about a finished run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lookupffn.config.sections import Budget


def run_summary(
    *,
    config: Mapping[str, Any],
    budget: Budget,
    costs: Mapping[str, Any],
    results: Mapping[str, Any],
    statistics: Mapping[str, float],
    record: Mapping[str, Any],
    surroundings: Mapping[str, Any],
) -> dict[str, Any]:
    """The contents of summary.json.

    Args:
        config: of the run.
        budget: that it trained for.
        costs: what the trained model costs.
        results: what the objective says of data and scores.
        statistics: how the feed-forwards were used in the last validation.
        record: the last checkpoint's: steps, tokens, times (see ``lookupffn.training.state``).
        surroundings: machine and software, as they were when the run started.

    ``model_sha256`` is added when model/ is written, whose card is made of the rest.
    """
    tokens, training_s = record["tokens"], record["training_s"]
    return {
        **{key: costs[key] for key in ("ffn", "ffn_options")},
        "model": config["model"]["name"],
        "seed": config["seed"],
        "steps": record["step"],
        "tokens": tokens,
        "budget": {"unit": budget.unit, "amount": budget.amount},
        # where a session resumed the run with another budget
        **({"budgets": record["budgets"]} if len(record["budgets"]) > 1 else {}),
        **results,
        "best": record["best"],
        "statistics": dict(statistics),
        "skipped_steps": record["skipped_steps"],
        **{key: value for key, value in costs.items() if key not in ("ffn", "ffn_options")},
        "training_flops": record["training_flops_per_token"] * tokens,
        "wall_clock_s": record["wall_clock_s"],
        "training_s": training_s,
        **{f"{what}_s": record["aside_s"].get(what, 0.0) for what in ("validation", "checkpoint")},
        "tokens_per_s": tokens / max(training_s, 1e-9),
        "precision": config["training"]["precision"],
        **surroundings,
    }
