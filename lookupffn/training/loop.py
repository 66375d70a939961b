"""Pretraining, from the config to summary.json, in the order things happen.

Everything random is a function of (seed, step, process): the data order, the masks, and the dropout, whose generator is
seeded anew for every micro-batch. So a run that goes on from a checkpoint needs to know its step and nothing else to
repeat what an uninterrupted run would have done.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from omegaconf import DictConfig
from tqdm import tqdm

from lookupffn.data import PreparedData, prepare_data, training_batches
from lookupffn.data.cache import write_atomically
from lookupffn.evaluation import evaluate_mlm, unigram_perplexity
from lookupffn.model import LookupRobertaForMaskedLM
from lookupffn.report import run_table
from lookupffn.training.checkpoint import load_state, save_checkpoint, save_model, what_is_kept
from lookupffn.training.checks import check_config
from lookupffn.training.clock import Clock
from lookupffn.training.files import digests, finite, to_json, whole_folder
from lookupffn.training.optimizer import build_optimizer, learning_rate
from lookupffn.training.processes import gather_losses, on_main, share, start_accelerator, sum_over
from lookupffn.training.run_folder import (
    CHECKPOINTS,
    METRICS,
    MODEL,
    SUMMARY,
    open_run_folder,
    truncate_metrics,
)
from lookupffn.training.settings import TrainingSettings, evaluation_settings, optimizer_settings, training_settings
from lookupffn.training.setup import build_masker, build_model, cache_folder, resolve, resume_point
from lookupffn.training.source import ModelSource, adopt_model
from lookupffn.training.step import NonFiniteError, advice, check_validation, check_weights, update
from lookupffn.training.summary import model_figures, plateau_exit_step, surroundings, training_flops_per_token
from lookupffn.training.tracking import start_tracker

# fp16 skips steps while it looks for a loss scale; this many in a row is no search any more
MAX_SKIPPED_STEPS = 40

logger = logging.getLogger(__name__)


def train(cfg: DictConfig, *, sweep_member: bool = False) -> dict[str, Any] | None:
    """Trains one model and leaves its run folder.

    Args:
        cfg: the composed config (configs/train.yaml).
        sweep_member: whether this is one run of several.

    Returns:
        The contents of summary.json; None for a sweep member that was finished already, and on every process but the
        main one.

    Raises:
        UserError: something the user gave cannot be, or training diverged.
    """
    started = time.perf_counter()
    config = resolve(cfg)
    init = adopt_model(config) if config["init_from"] else None
    settings = check_config(config)
    accelerator = start_accelerator(settings.precision, settings.gradient_accumulation_steps)
    training_settings(config["training"], accelerator.num_processes)

    folder = on_main(accelerator, lambda: open_run_folder(config, sweep_member=sweep_member))
    path = share(accelerator, None if folder is None else folder.path)
    if path is None:
        return None
    try:
        return _train_in(path, config, settings, accelerator, init, started, sweep_member)
    except NonFiniteError as error:
        raise NonFiniteError(f"{error}{advice(what_is_kept(path / CHECKPOINTS))}") from None
    finally:
        if folder is not None:
            folder.release()


def _train_in(
    path: Path,
    config: dict[str, Any],
    settings: TrainingSettings,
    accelerator: Accelerator,
    init: ModelSource | None,
    started: float,
    sweep_member: bool,
) -> dict[str, Any] | None:
    main, world_size, rank = accelerator.is_main_process, accelerator.num_processes, accelerator.process_index
    seed, optimizer_config = config["seed"], optimizer_settings(config["optimizer"])
    evaluation_batch, evaluation_tokens = evaluation_settings(config["evaluation"])
    logger.info("run folder: %s", path)

    data = prepare_data(config["data"], config["tokenizer"], cache_folder(config["cache_dir"]))
    masker = build_masker(data, config["data"]["mask_rate"])
    sequence_length = data.train.sequence_length
    masked = masker.masked_per_sequence(sequence_length)

    checkpoint, record = share(accelerator, on_main(accelerator, lambda: resume_point(path, data)))
    model = build_model(config, data, checkpoint, init)
    figures = model_figures(model, sequence_length, masked)
    unigram = unigram_perplexity(
        data.token_counts, data.validation, masker,
        data_fingerprint=data.data_fingerprint, max_tokens=evaluation_tokens,
    )  # fmt: skip
    logger.info(
        "%s: %s parameters, of which %s in feed-forwards of %.3f MFLOP a token; unigram perplexity to beat: %.1f",
        figures["ffn"], f"{figures['parameters']:,}", f"{figures['ffn_parameters']:,}",
        figures["ffn_flops_per_token"] / 1e6, unigram.perplexity,
    )  # fmt: skip

    model.to(accelerator.device).train()
    wrapped, optimizer = accelerator.prepare(model, build_optimizer(model, optimizer_config, accelerator.device))
    step_model = torch.compile(wrapped) if settings.compile else wrapped

    tokens_per_step = settings.batch_size * sequence_length
    flops_per_token = training_flops_per_token(figures)
    total_steps = settings.budget.steps(tokens_per_step, flops_per_token)
    clock = Clock(record.get("training_s", 0.0))
    earlier_s = record.get("wall_clock_s", 0.0)
    step, recent, skipped = record.get("step", 0), list(record.get("recent_losses", [])), 0
    lines: list[dict[str, Any]] = []
    if checkpoint is not None:
        state = load_state(checkpoint, accelerator.device)
        optimizer.load_state_dict(state["optimizer"])
        if accelerator.scaler is not None and state["scaler"] is not None:
            accelerator.scaler.load_state_dict(state["scaler"])
        logger.info("going on from step %d (%s)", step, checkpoint)
    if main:
        lines = truncate_metrics(path / METRICS, step)

    def validate() -> dict[str, float]:
        with model.collecting_statistics():
            result = evaluate_mlm(
                model, data.validation, masker,
                data_fingerprint=data.data_fingerprint, batch_size=evaluation_batch, max_tokens=evaluation_tokens,
                rank=rank, world_size=world_size, reduce=sum_over(accelerator), progress=main,
            )  # fmt: skip
        check_validation(result.loss, f"step {step}", model)
        statistics = {f"ffn_{name}": value for name, value in model.statistics().items()}
        return {"validation_loss": result.loss, "validation_perplexity": result.perplexity, **statistics}

    def save() -> None:
        nonlocal recent
        check_weights(model, step)
        recent = [*recent, *gather_losses(accelerator, local)]
        local.clear()
        if main:
            scaler = accelerator.scaler
            save_checkpoint(
                path / CHECKPOINTS, step, model=model, tokenizer=data.tokenizer, keep=settings.keep_checkpoints,
                state={"optimizer": optimizer.state_dict(), "scaler": scaler and scaler.state_dict()},
                metadata={
                    "tokens": step * tokens_per_step,
                    "training_s": clock.seconds(),
                    "wall_clock_s": earlier_s + time.perf_counter() - started,
                    "recent_losses": recent,
                    "unigram_perplexity": unigram.perplexity,
                    "data_fingerprint": data.data_fingerprint,
                    "tokenizer_fingerprint": data.tokenizer_fingerprint,
                },
            )  # fmt: skip

    # losses of this process since the last logged point; those in `recent` are of all processes already
    local: list[float] = []
    logged_at, logged_s = step, clock.seconds()
    progress = budget_progress(accelerator, settings, clock)
    done = step >= total_steps if total_steps is not None else progress >= 1.0
    batches = training_batches(
        data.train, masker, seed=seed, batch_size=settings.batch_size, start_step=step,
        end_step=total_steps if total_steps is not None else sys.maxsize, rank=rank, world_size=world_size,
        accumulation=settings.gradient_accumulation_steps, num_workers=settings.num_workers,
    )  # fmt: skip
    # after the workers of training_batches, for a process with threads should not fork
    tracker = start_tracker(path, config, sweep_member=sweep_member) if main else None
    bar = tqdm(total=total_steps, initial=step, unit="step", desc="training", disable=not main, smoothing=0.05)
    finished = False
    try:
        clock.start()
        while not done:
            rate = learning_rate(optimizer_config, step=step, total_steps=total_steps, progress=progress)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["lr_scale"]
            loss, grad_norm, auxiliary = update(
                step_model, model, optimizer, accelerator, next(batches),
                seed=seed, step=step, max_grad_norm=optimizer_config.max_grad_norm,
            )  # fmt: skip
            # not optimizer.step_was_skipped: accelerate does not see what a fused AdamW leaves out
            skipped = 0 if math.isfinite(grad_norm) else skipped + 1
            if skipped > MAX_SKIPPED_STEPS:
                raise NonFiniteError(f"step {step + 1}: {skipped} steps in a row overflowed in fp16; use bf16 or fp32")
            step += 1
            local.append(loss)
            progress = budget_progress(accelerator, settings, clock)
            done = step >= total_steps if total_steps is not None else progress >= 1.0

            validating = done or step % settings.validate_every == 0
            if validating or step % settings.log_every == 0:
                losses = [*recent, *gather_losses(accelerator, local)]
                recent, local = [], []
                seconds = clock.seconds()
                line = {
                    "step": step,
                    "tokens": step * tokens_per_step,
                    "training_flops": flops_per_token * step * tokens_per_step,
                    # fsum does not depend on how the losses were grouped, so an interruption does not show
                    "loss": math.fsum(losses) / len(losses),
                    "learning_rate": rate,
                    "grad_norm": grad_norm,
                    "tokens_per_s": (step - logged_at) * tokens_per_step / max(seconds - logged_s, 1e-9),
                    **auxiliary,
                }
                logged_at, logged_s = step, seconds
                if validating:
                    with clock.paused():
                        line |= validate()
                if main:
                    append_line(path / METRICS, line)
                    lines.append(line)
                    tracker.log(finite(line))
                    show(bar, line, settings, progress)
            if done or step % settings.checkpoint_every == 0:
                with clock.paused():
                    save()
            bar.update()
        clock.stop()
        bar.close()

        # a budget that a resumed run has already used up leaves nothing to train, but something to score
        scored = lines[-1] if main and lines and lines[-1]["step"] == step else {}
        has_score = share(accelerator, "validation_loss" in scored)
        validation = scored if has_score else validate()
        if not main:
            finished = True
            accelerator.wait_for_everyone()
            return None
        figures = model_figures(model, sequence_length, masked)  # a cost that depends on the tokens is measured by now
        model_files = write_model(path, model, data)
        tokens = step * tokens_per_step
        summary = {
            **{key: figures[key] for key in ("ffn", "ffn_options")},
            "model": config["model"]["name"],
            "data": config["data"]["name"],
            "seed": seed,
            "steps": step,
            "tokens": tokens,
            "budget": {"unit": settings.budget.unit, "amount": settings.budget.amount},
            **{key: validation[key] for key in ("validation_loss", "validation_perplexity")},
            "unigram_loss": unigram.loss,
            "unigram_perplexity": unigram.perplexity,
            "masked_validation_tokens": unigram.masked_tokens,
            "statistics": {key.removeprefix("ffn_"): validation[key] for key in validation if key.startswith("ffn_")},
            "plateau_exit_step": plateau_exit_step(lines, unigram.loss),
            **{key: value for key, value in figures.items() if key not in ("ffn", "ffn_options")},
            "training_flops": flops_per_token * tokens,
            "wall_clock_s": earlier_s + time.perf_counter() - started,
            "training_s": clock.seconds(),
            "tokens_per_s": tokens / max(clock.seconds(), 1e-9),
            "processes": world_size,
            "precision": settings.precision,
            "data_fingerprint": data.data_fingerprint,
            "tokenizer_fingerprint": data.tokenizer_fingerprint,
            "model_sha256": model_files,
            **surroundings(accelerator.device),
        }
        tracker.finish(finite(summary))
        finished = True
        write_atomically(path / SUMMARY, to_json(summary, indent=2))
        sys.stdout.write(run_table(summary, path))
        sys.stdout.flush()
        accelerator.wait_for_everyone()
        return summary
    finally:
        bar.close()
        if tracker is not None and not finished:
            tracker.finish(None, failed=True)


def write_model(path: Path, model: LookupRobertaForMaskedLM, data: PreparedData) -> dict[str, str]:
    """model/, whole or not at all; returns the SHA-256 of its files."""
    with whole_folder(path / MODEL, "the model", kept=what_is_kept(path / CHECKPOINTS)) as partial:
        save_model(partial, model, data.tokenizer)
    return digests(path / MODEL)


def append_line(path: Path, line: dict[str, Any]) -> None:
    """One line of metrics.jsonl, on the disk when this returns as far as the process is concerned."""
    with path.open("a", encoding="utf-8") as file:
        file.write(to_json(line))


def show(bar: tqdm, line: dict[str, Any], settings: TrainingSettings, progress: float) -> None:
    """The progress bar's figures, and a log line at validation points."""
    shown = {
        "loss": f"{line['loss']:.3f}",
        "lr": f"{line['learning_rate']:.1e}",
        "tok/s": f"{line['tokens_per_s']:,.0f}",
    }
    if settings.budget.unit == "minutes":
        shown["min"] = f"{progress * settings.budget.amount:.1f}/{settings.budget.amount:g}"
    bar.set_postfix(shown, refresh=False)
    if "validation_loss" in line:
        logger.info(
            "step %d: validation perplexity %.2f (loss %.4f)",
            line["step"], line["validation_perplexity"], line["validation_loss"],
        )  # fmt: skip


def budget_progress(accelerator: Accelerator, settings: TrainingSettings, clock: Clock) -> float:
    """How much of a budget of minutes is used up, by the main process's clock; 0 for other budgets."""
    if settings.budget.unit != "minutes":
        return 0.0
    return share(accelerator, min(1.0, clock.seconds() / (60.0 * settings.budget.amount)))
