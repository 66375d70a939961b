"""summary.json: everything a comparison needs to know about a finished run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from accelerate import Accelerator

from lookupffn.config.sections import TrainingSettings
from lookupffn.cost import TRAINING_MULTIPLE
from lookupffn.data import PreparedData
from lookupffn.models import LookupRobertaForMaskedLM
from lookupffn.objectives.mlm import EvaluationResult
from lookupffn.training.budget import Clock

# nats below the unigram loss at which a model has left the plateau that masked language modelling starts on
PLATEAU_MARGIN = 0.5


def model_figures(model: LookupRobertaForMaskedLM, sequence_length: int, masked: int) -> dict[str, Any]:
    """What a model costs: FLOPs a token, parameters, and the same of GEMM feed-forwards in its place.

    Args:
        model: the model.
        sequence_length: tokens attention runs over.
        masked: positions a sequence that the LM head runs on.
    """
    ffn, gemm = model.ffn_cost(), model.gemm_ffn_cost()
    whole = model.cost(sequence_length, masked / sequence_length)
    options = dict(model.config.ffn)
    layers = model.config.num_hidden_layers
    return {
        "ffn": options.pop("name"),
        "ffn_options": options,
        # of all layers together
        "ffn_flops_per_token": ffn.flops,
        "ffn_flops_per_token_per_layer": ffn.flops / layers,
        "gemm_ffn_flops_per_token": gemm.flops,
        "model_flops_per_token": whole.flops,
        "parameters_touched": whole.parameters_touched,
        "ffn_parameters_touched": ffn.parameters_touched,
        "ffn_parameters": sum(p.numel() for ffn in model.feed_forwards() for p in ffn.parameters()),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def run_summary(
    figures: dict[str, Any],
    *,
    config: dict[str, Any],
    settings: TrainingSettings,
    data: PreparedData,
    accelerator: Accelerator,
    validation: Mapping[str, Any],
    unigram: EvaluationResult,
    lines: Sequence[dict[str, Any]],
    step: int,
    tokens: int,
    flops_per_token: float,
    skipped: int,
    best: dict[str, Any] | None,
    clock: Clock,
    around: Mapping[str, Any],
    wall_clock_s: float,
    model_sha256: dict[str, str],
) -> dict[str, Any]:
    """The contents of summary.json.

    Args:
        figures: what ``model_figures`` says of the trained model.
        config, settings, data, accelerator: of the run.
        validation: the last validation, as in metrics.jsonl.
        unigram: the unigram's score on the same tokens.
        lines: metrics.jsonl.
        step, tokens: trained on.
        flops_per_token: of training.
        skipped: steps whose batch was left out.
        best: step and validation_loss of the best validation.
        clock: seconds in training steps, validations and checkpoints.
        wall_clock_s: seconds in all.
        around: ``surroundings`` when it started.
        model_sha256: digests of the files of model/.
    """
    return {
        **{key: figures[key] for key in ("ffn", "ffn_options")},
        "model": config["model"]["name"],
        "data": config["data"]["name"],
        "seed": config["seed"],
        "steps": step,
        "tokens": tokens,
        "budget": {"unit": settings.budget.unit, "amount": settings.budget.amount},
        **{key: validation[key] for key in ("validation_loss", "validation_perplexity")},
        "best": best,
        "unigram_loss": unigram.loss,
        "unigram_perplexity": unigram.perplexity,
        "masked_validation_tokens": unigram.masked_tokens,
        "statistics": {key.removeprefix("ffn_"): validation[key] for key in validation if key.startswith("ffn_")},
        "plateau_exit_step": plateau_exit_step(lines, unigram.loss),
        "skipped_steps": skipped,
        **{key: value for key, value in figures.items() if key not in ("ffn", "ffn_options")},
        "training_flops": flops_per_token * tokens,
        "wall_clock_s": wall_clock_s,
        "training_s": clock.seconds(),
        **{f"{what}_s": clock.aside.get(what, 0.0) for what in ("validation", "checkpoint")},
        "tokens_per_s": tokens / max(clock.seconds(), 1e-9),
        "processes": accelerator.num_processes,
        "precision": settings.precision,
        "data_fingerprint": data.data_fingerprint,
        "tokenizer_fingerprint": data.tokenizer_fingerprint,
        "model_sha256": model_sha256,
        **around,
    }


def training_flops_per_token(figures: dict[str, Any]) -> float:
    """Forward and backward, as in `lookupffn.cost`."""
    return TRAINING_MULTIPLE * figures["model_flops_per_token"]


def plateau_exit_step(lines: Sequence[dict[str, Any]], unigram_loss: float) -> int | None:
    """The first validation whose loss is half a nat below the unigram loss; None where there is none.

    Args:
        lines: metrics.jsonl.
        unigram_loss: nats, of the same masked tokens.
    """
    for line in lines:
        loss = line.get("validation_loss")
        if loss is not None and loss <= unigram_loss - PLATEAU_MARGIN:
            return line["step"]
    return None
