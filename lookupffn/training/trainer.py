"""Pretraining, from the config to summary.json, in the order things happen.

Everything random is a function of (seed, step, process): the data order, the masks, and the dropout, whose generator is
seeded anew for every micro-batch. So a run that goes on from a checkpoint needs to know its step and nothing else to
repeat what an uninterrupted run would have done.
"""

from __future__ import annotations

import logging
import math
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from omegaconf import DictConfig
from tqdm import tqdm

from lookupffn.config.sections import (
    Budget,
    TrainingSettings,
    evaluation_settings,
    optimizer_settings,
    training_settings,
)
from lookupffn.data import prepare_data, training_batches
from lookupffn.distributed.exact_sum import ExactSum
from lookupffn.distributed.processes import any_process, on_main, share, start_accelerator, sum_over
from lookupffn.distributed.sharding import prepare, take_state, whole_state, whole_weights
from lookupffn.errors import UserError
from lookupffn.objectives.mlm import EvaluationStopped, evaluate_mlm, unigram_perplexity
from lookupffn.objectives.pretrained import own_tokenizer, starting_model
from lookupffn.report import run_table
from lookupffn.runs.checkpoint import amend_checkpoint, load_state, save_checkpoint, what_is_kept, write_model
from lookupffn.runs.folder import open_run_folder
from lookupffn.runs.machine import surroundings
from lookupffn.runs.metrics import append_line, sync, truncate_metrics
from lookupffn.runs.model_source import ModelSource
from lookupffn.runs.names import CHECKPOINTS, METRICS, MODEL, SUMMARY, member_folder
from lookupffn.runs.reading import read_summary
from lookupffn.runs.summary import model_figures, run_summary, training_flops_per_token
from lookupffn.signals import Interrupted, deferring, handling, name, received
from lookupffn.storage import finite, to_json, write_atomically
from lookupffn.training.budget import Clock, budget_progress
from lookupffn.training.checks import check_config
from lookupffn.training.failures import trouble
from lookupffn.training.optimizer import build_optimizer, learning_rate
from lookupffn.training.setup import build_masker, build_model, cache_folder, resolve, resume_point
from lookupffn.training.step import NonFiniteError, advice, check_validation, check_weights, update
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
        The contents of summary.json, also of a sweep member that was finished already; None on every process but the
        main one.

    Raises:
        UserError: something the user gave cannot be, or training diverged, or memory or disk are full.
        Interrupted: SIGINT or SIGTERM; the run goes on when it is started again.
    """
    started = time.perf_counter()
    config = resolve(cfg)
    init = starting_model(config)
    settings = check_config(config)
    accelerator = start_accelerator(settings.precision, settings.gradient_accumulation_steps)
    training_settings(config["training"], accelerator.num_processes)

    folder = on_main(accelerator, lambda: open_run_folder(config, sweep_member=sweep_member))
    path = share(accelerator, None if folder is None else folder.path)
    if path is None:
        return on_main(accelerator, lambda: read_summary(member_folder(config)))
    try:
        with handling():
            return _train_in(path, config, settings, accelerator, init, started, sweep_member)
    except NonFiniteError as error:
        raise NonFiniteError(f"{error}{advice(what_is_kept(path / CHECKPOINTS))}") from None
    except Interrupted as stop:
        kept = what_is_kept(path / CHECKPOINTS)
        raise Interrupted(stop.signum, f"stopped by {name(stop.signum)}. {kept}: repeat the command to go on") from None
    except (RuntimeError, MemoryError) as error:
        reason = trouble(error, accelerator.num_processes)
        if reason is None:
            raise
        if (signum := received()) is not None:  # the others have stopped already
            raise Interrupted(signum) from None
        raise UserError(f"{reason}. {what_is_kept(path / CHECKPOINTS)}") from error
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
    around = surroundings(accelerator.device)  # now: the files may have changed by the end
    on_the_way = min(filter(None, (settings.validate_tokens, evaluation_tokens)), default=None)
    logger.info("run folder: %s", path)

    data = prepare_data(config["data"], own_tokenizer(path, config["tokenizer"]), cache_folder(config["cache_dir"]))
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
    optimizer = build_optimizer(model, optimizer_config, accelerator.device)
    exact = settings.micro_batches and ExactSum(model.parameters(), accelerator, settings.micro_batches)
    wrapped, optimizer = prepare(accelerator, model, optimizer, alone=exact is not None)
    step_model = torch.compile(wrapped) if settings.compile else wrapped

    tokens_per_step = settings.batch_size * sequence_length
    # what some feed-forwards cost is measured as they run, so a budget of FLOPs keeps to what the run began with
    flops_per_token = record.get("training_flops_per_token", training_flops_per_token(figures))
    total_steps = settings.budget.steps(tokens_per_step, flops_per_token)
    clock = Clock(record.get("training_s", 0.0), record.get("aside_s"))
    earlier_s = record.get("wall_clock_s", 0.0)
    step = first_step = record.get("step", 0)
    # what has happened since the last line of metrics.jsonl, and the line whose validation was interrupted
    losses, unvalidated = list(record.get("recent_losses", [])), record.get("unvalidated")
    skipped, in_a_row = record.get("skipped_steps", 0), record.get("skipped_in_a_row", 0)
    best: dict[str, float] | None = record.get("best")
    lines: list[dict[str, Any]] = []
    if checkpoint is not None:
        state = load_state(checkpoint)
        take_state(optimizer, state["optimizer"])
        if accelerator.scaler is not None and state["scaler"] is not None:
            accelerator.scaler.load_state_dict(state["scaler"])
        logger.info("going on from step %d (%s)", step, checkpoint)
    if main:
        lines = truncate_metrics(path / METRICS, step - (unvalidated is not None))

    def validate(tokens: int | None, stop: Any = None) -> dict[str, float]:
        with model.collecting_statistics():
            result = evaluate_mlm(
                model, data.validation, masker,
                data_fingerprint=data.data_fingerprint, batch_size=evaluation_batch, max_tokens=tokens,
                rank=rank, world_size=world_size, reduce=sum_over(accelerator),
                stop=None if stop is None else lambda: any_process(accelerator, stop()), progress=main,
            )  # fmt: skip
        check_validation(result.loss, f"step {step}", model)
        statistics = {f"ffn_{name}": value for name, value in model.statistics().items()}
        return {"validation_loss": result.loss, "validation_perplexity": result.perplexity, **statistics}

    def conclude(line: dict[str, Any], *, validating: bool, stop: Any) -> bool:
        """Writes a line of metrics.jsonl; whether its validation is the best so far."""
        nonlocal best, unvalidated
        if validating:
            unvalidated = line
            with clock.paused("validation"):
                comparable = validate(on_the_way, stop)
                line = line | (
                    validate(evaluation_tokens, stop) if done and on_the_way != evaluation_tokens else comparable
                )
            unvalidated = None
        if main:
            append_line(path / METRICS, line, kept=what_is_kept(path / CHECKPOINTS))
            lines.append(line)
            tracker.log(finite(line))
            show(bar, line, settings.budget, progress)
        better = validating and (best is None or comparable["validation_loss"] < best["validation_loss"])
        if better:
            best = {"step": step, "validation_loss": comparable["validation_loss"]}
        return better and settings.keep_best

    def save() -> None:
        check_weights(model, step, accelerator)
        weights, scaler = whole_weights(model, keep=main), accelerator.scaler
        state = {"optimizer": whole_state(optimizer, keep=main), "scaler": scaler and scaler.state_dict()}
        if not main:
            return
        metadata = {
            "tokens": step * tokens_per_step,
            "training_flops_per_token": flops_per_token,
            "training_s": clock.seconds(),
            "aside_s": clock.aside,
            "wall_clock_s": earlier_s + time.perf_counter() - started,
            "recent_losses": losses,
            "unvalidated": unvalidated and finite(unvalidated),
            "skipped_steps": skipped,
            "skipped_in_a_row": in_a_row,
            "best": best,
            "unigram_perplexity": unigram.perplexity,
            "data_fingerprint": data.data_fingerprint,
            "tokenizer_fingerprint": data.tokenizer_fingerprint,
        }
        kept_best = best["step"] if best and settings.keep_best else None
        sync(path / METRICS)
        if checkpoint is not None and step == first_step:
            amend_checkpoint(checkpoint, metadata)
            return
        save_checkpoint(
            path / CHECKPOINTS, step, model=model, weights=weights, tokenizer=data.tokenizer, state=state,
            metadata=metadata, keep=settings.keep_checkpoints, best=kept_best,
        )  # fmt: skip

    logged_at, logged_s = step, clock.seconds()
    progress = budget_progress(accelerator, settings, clock)
    done = step >= total_steps if total_steps is not None else progress >= 1.0
    batches = training_batches(
        data.train, masker, seed=seed, batch_size=settings.batch_size, start_step=step,
        end_step=total_steps if total_steps is not None else sys.maxsize, rank=rank, world_size=world_size,
        accumulation=settings.accumulation(world_size), num_workers=settings.num_workers,
    )  # fmt: skip
    # after the workers of training_batches, for a process with threads should not fork
    tracker = start_tracker(path, config, sweep_member=sweep_member) if main else None
    bar = tqdm(total=total_steps, initial=step, unit="step", desc="training", disable=not main, smoothing=0.05)
    finished = False
    try:
        with deferring() as stopping:
            clock.start()
            try:
                if unvalidated is not None and conclude(unvalidated, validating=True, stop=stopping):
                    save()
                while not done:
                    rate = learning_rate(optimizer_config, step=step, total_steps=total_steps, progress=progress)
                    for group in optimizer.param_groups:
                        group["lr"] = rate * group["lr_scale"]
                    result = update(
                        step_model, model, optimizer, accelerator, next(batches), seed=seed, step=step,
                        max_grad_norm=optimizer_config.max_grad_norm, may_skip=in_a_row < settings.skip_nonfinite,
                        stopping=stopping, exact=exact,
                    )  # fmt: skip
                    # not optimizer.step_was_skipped: accelerate does not see what a fused AdamW leaves out
                    in_a_row = in_a_row + 1 if result.skipped else 0
                    if in_a_row > max(MAX_SKIPPED_STEPS, settings.skip_nonfinite):
                        raise NonFiniteError(f"step {step + 1}: {in_a_row} steps in a row overflowed; use bf16 or fp32")
                    skipped += result.skipped
                    step += 1
                    if math.isfinite(result.loss):
                        losses.append(result.loss)
                    progress = budget_progress(accelerator, settings, clock)
                    done = step >= total_steps if total_steps is not None else progress >= 1.0

                    validating, better = done or step % settings.validate_every == 0, False
                    if validating or step % settings.log_every == 0:
                        seconds = clock.seconds()
                        line = {
                            "step": step,
                            "tokens": step * tokens_per_step,
                            "training_flops": flops_per_token * step * tokens_per_step,
                            # fsum does not depend on how the losses were grouped, so an interruption does not show
                            "loss": math.fsum(losses) / len(losses) if losses else math.nan,
                            "learning_rate": rate,
                            "grad_norm": result.grad_norm,
                            "tokens_per_s": (step - logged_at) * tokens_per_step / max(seconds - logged_s, 1e-9),
                            **({"skipped_steps": skipped} if skipped or settings.skip_nonfinite else {}),
                            **result.auxiliary,
                        }
                        logged_at, logged_s, losses = step, seconds, []
                        if validating and result.stop:
                            unvalidated = line
                        else:
                            better = conclude(line, validating=validating, stop=stopping)
                    if done or better or result.stop or step % settings.checkpoint_every == 0:
                        with clock.paused("checkpoint"):
                            save()
                    bar.update()
                    if result.stop:
                        raise Interrupted(stopping() or signal.SIGTERM)
            except EvaluationStopped:
                save()
                raise Interrupted(stopping() or signal.SIGTERM) from None
            clock.stop()
        bar.close()

        # a budget that a resumed run has already used up leaves nothing to train, but something to score
        scored = lines[-1] if main and lines and lines[-1]["step"] == step else {}
        has_score = share(accelerator, "validation_loss" in scored)
        validation = scored if has_score else validate(evaluation_tokens)
        weights = whole_weights(model, keep=main)
        if not main:
            finished = True
            accelerator.wait_for_everyone()
            return None
        summary = run_summary(
            model_figures(model, sequence_length, masked),  # a cost that depends on the tokens is measured by now
            config=config, settings=settings, data=data, accelerator=accelerator, validation=validation,
            unigram=unigram, lines=lines, step=step, tokens=step * tokens_per_step, flops_per_token=flops_per_token,
            skipped=skipped, best=best, clock=clock, around=around,
            wall_clock_s=earlier_s + time.perf_counter() - started,
            model_sha256=write_model(
                path / MODEL, model, data.tokenizer, weights, kept=what_is_kept(path / CHECKPOINTS)
            ),
        )  # fmt: skip
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


def show(bar: tqdm, line: dict[str, Any], budget: Budget, progress: float) -> None:
    """The progress bar's figures, and a log line at validation points.

    Args:
        bar: the progress bar.
        line: of metrics.jsonl.
        budget: of the run.
        progress: used-up part of a budget of minutes, 0 to 1.
    """
    shown = {
        "loss": f"{line['loss']:.3f}",
        "lr": f"{line['learning_rate']:.1e}",
        "tok/s": f"{line['tokens_per_s']:,.0f}",
    }
    if budget.unit == "minutes":
        shown["min"] = f"{progress * budget.amount:.1f}/{budget.amount:g}"
    bar.set_postfix(shown, refresh=False)
    if "validation_loss" in line:
        logger.info(
            "step %d: validation perplexity %.2f (loss %.4f)",
            line["step"], line["validation_perplexity"], line["validation_loss"],
        )  # fmt: skip
