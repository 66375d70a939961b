"""The training loop, in the order things happen.

Everything random is a function of (seed, step, process): the data order, the masks, and the dropout, whose generator is
seeded anew for every micro-batch. So a run that resumes from a checkpoint needs to know its step and nothing else to
repeat what an uninterrupted run would have done.
"""

from __future__ import annotations

import logging
import math
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

from lookupffn.distributed.processes import ExactSum, any_process, broadcast, on_main, processes
from lookupffn.distributed.sharding import full_state, full_weights, prepare
from lookupffn.models.hub import model_card
from lookupffn.objectives import EvaluationStopped, Objective
from lookupffn.objectives.base import NonFiniteError, check_validation, check_weights
from lookupffn.report import run_table
from lookupffn.runs.checkpoint import amend_checkpoint, save_checkpoint, what_is_kept, write_model
from lookupffn.runs.names import CHECKPOINTS, METRICS, MODEL, SUMMARY
from lookupffn.runs.records import append_line, sync, truncate_metrics
from lookupffn.runs.summary import run_summary, surroundings
from lookupffn.signals import Interrupted, deferring
from lookupffn.storage import finite, to_json, write_atomically
from lookupffn.training.budget import Clock, budget_progress, choose_budget, training_flops_per_token
from lookupffn.training.optimizer import build_optimizer, learning_rate
from lookupffn.training.state import TrainState, restore, resume_point
from lookupffn.training.step import StepResult, Updater, micro_batches_each, plain_attention
from lookupffn.training.tracking import Tracker

# fp16 skips steps while it looks for a loss scale; this many in a row is no search any more
MAX_SKIPPED_STEPS = 40

logger = logging.getLogger(__name__)


class Trainer:
    """One session of a run, in its locked folder.

    ``state`` is what the run has done so far.
    """

    def __init__(
        self,
        path: Path,
        objective: Objective,
        accelerator: Accelerator,
        tracker: Callable[[], Tracker],
        started: float,
    ) -> None:
        """Prepares data, model and optimizer, new or as the newest checkpoint has them.

        Args:
            path: the run's folder.
            objective: what to train for, not prepared.
            accelerator: of the run.
            tracker: starts one.
            started: ``time.perf_counter()`` when the session began.
        """
        self.path, self.objective, self.accelerator = path, objective, accelerator
        self.main = accelerator.is_main_process
        # now: the files may have changed by the end
        self.surroundings = surroundings(accelerator.device) | processes(accelerator)
        objective.prepare(path)
        self.config, self.settings = objective.config, objective.config.training
        found = on_main(accelerator, lambda: resume_point(path, objective.fingerprints()))
        on_main(accelerator, lambda: objective.write_files(path))
        self.resumed_from, record = broadcast(accelerator, found)
        self.state = TrainState.from_record(record)
        self._set_up_model()
        self._set_up_budget(started)
        self._set_up_batches(tracker)

    def _set_up_model(self) -> None:
        objective, accelerator, settings = self.objective, self.accelerator, self.settings
        self.model = model = objective.build_model(self.resumed_from)
        self.costs = objective.costs(model)
        logger.info(
            "%s: %s parameters, of which %s in feed-forwards of %.3f MFLOP a token; to beat: %s",
            self.costs["ffn"], f"{self.costs['parameters']:,}", f"{self.costs['ffn_parameters']:,}",
            self.costs["ffn_flops_per_token"] / 1e6, objective.bar,
        )  # fmt: skip
        if plain_attention(settings.precision, accelerator.device.type):
            model.set_attn_implementation("eager")
        model.to(accelerator.device).train()
        optimizer = build_optimizer(model, self.config.optimizer, accelerator.device)
        parts = settings.micro_batches
        exact = ExactSum(model.parameters(), accelerator, parts) if parts else None
        wrapped, self.optimizer = prepare(
            accelerator, model, optimizer, layer=objective.layer_class, alone=exact is not None
        )
        self.updater = Updater(
            objective, accelerator, model=model, step_model=torch.compile(wrapped) if settings.compile else wrapped,
            optimizer=self.optimizer, max_grad_norm=self.config.optimizer.max_grad_norm, exact=exact,
        )  # fmt: skip
        if self.resumed_from is not None:
            restore(self.resumed_from, self.optimizer, accelerator)
            logger.info("resuming from step %d (%s)", self.state.step, self.resumed_from)

    def _set_up_budget(self, started: float) -> None:
        state = self.state
        if state.training_flops_per_token is None:
            state.training_flops_per_token = training_flops_per_token(self.costs)
        self.budget = choose_budget(self.settings, self.objective)
        flops, objective = state.training_flops_per_token, self.objective
        self.total_steps = self.budget.steps(objective.tokens_per_step, flops, objective.steps_per_epoch)
        self.clock = Clock(state.training_s, state.aside_s)
        self._wall_start = started - state.wall_clock_s  # counts earlier sessions too
        self.first_step = self._logged_step = state.step
        self._logged_s = self.clock.seconds()
        self._look_at_budget()
        exceeded = self.done if self.total_steps is None else state.step > self.total_steps
        state.set_budget(self.budget, exceeded=exceeded)

    def _set_up_batches(self, tracker: Callable[[], Tracker]) -> None:
        state, settings, accelerator = self.state, self.settings, self.accelerator
        kept = state.step - (state.unvalidated is not None)
        self.lines = truncate_metrics(self.path / METRICS, kept) if self.main else []
        self.batches = self.objective.training_batches(
            start_step=state.step, end_step=sys.maxsize if self.total_steps is None else self.total_steps,
            rank=accelerator.process_index, world_size=accelerator.num_processes,
            accumulation=micro_batches_each(settings, accelerator.num_processes),
        )  # fmt: skip
        # after the workers of training_batches, for a process with threads should not fork
        self.tracker = tracker() if self.main else None
        self.bar = tqdm(
            total=self.total_steps, initial=state.step, unit="step", desc="training", disable=not self.main,
            smoothing=0.05,
        )  # fmt: skip

    def run(self) -> dict[str, Any] | None:
        """Trains to the end of the budget, and scores and saves the model; the summary, on the main process only."""
        finished = False
        try:
            self.train()
            self.bar.close()
            summary = self.finish()
            finished = True
            if self.main:
                write_atomically(self.path / SUMMARY, to_json(summary, indent=2))
                sys.stdout.write(run_table(summary, self.path))
                sys.stdout.flush()
            self.accelerator.wait_for_everyone()
            return summary
        finally:
            self.bar.close()
            if self.tracker is not None and not finished:
                self.tracker.finish(None, failed=True)

    def train(self) -> None:
        """Steps, lines of metrics, validations and checkpoints, until the budget is spent.

        Raises:
            Interrupted: a signal came; the step under way is done, and a checkpoint holds it.
        """
        state, settings = self.state, self.settings
        with deferring() as stopping:
            self.clock.start()
            try:
                if state.unvalidated is not None and self.conclude(state.unvalidated, True, stopping):
                    self.save()
                while not self.done:
                    result, rate = self.train_step(stopping)
                    validating, improved = self.done or state.step % settings.validate_every == 0, False
                    if validating or state.step % settings.log_every == 0:
                        line = self.log_line(result, rate)
                        if validating and result.stop:
                            state.unvalidated = line
                        else:
                            improved = self.conclude(line, validating, stopping)
                    if self.done or improved or result.stop or state.step % settings.checkpoint_every == 0:
                        with self.clock.paused("checkpoint"):
                            self.save()
                    self.bar.update()
                    if result.stop:
                        raise Interrupted(stopping() or signal.SIGTERM)
            except EvaluationStopped:
                self.save()
                raise Interrupted(stopping() or signal.SIGTERM) from None
            self.clock.stop()

    def train_step(self, stopping: Callable[[], object]) -> tuple[StepResult, float]:
        """One optimizer step; its result and its learning rate."""
        state, settings = self.state, self.settings
        rate = learning_rate(
            self.config.optimizer, step=state.step, total_steps=self.total_steps, progress=self.progress
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        result = self.updater.update(
            next(self.batches), step=state.step, may_skip=state.skipped_in_a_row < settings.skip_nonfinite,
            stopping=stopping,
        )  # fmt: skip
        # not optimizer.step_was_skipped, which does not see what a fused AdamW leaves out
        state.skipped_in_a_row = state.skipped_in_a_row + 1 if result.skipped else 0
        if state.skipped_in_a_row > max(MAX_SKIPPED_STEPS, settings.skip_nonfinite):
            raise NonFiniteError(
                f"step {state.step + 1}: {state.skipped_in_a_row} steps in a row overflowed; use bf16 or fp32"
            )
        state.skipped_steps += result.skipped
        state.step += 1
        state.tokens = self.objective.tokens(state.step)
        if math.isfinite(result.loss):
            state.recent_losses.append(result.loss)
        self._look_at_budget()
        return result, rate

    def _look_at_budget(self) -> None:
        """Sets ``progress`` (of a budget of minutes) and ``done``."""
        self.progress = budget_progress(self.accelerator, self.budget, self.clock)
        self.done = self.state.step >= self.total_steps if self.total_steps is not None else self.progress >= 1.0

    def log_line(self, result: StepResult, rate: float) -> dict[str, Any]:
        """The line of metrics.jsonl for the steps since the last one."""
        state, seconds = self.state, self.clock.seconds()
        new_tokens = state.tokens - self.objective.tokens(self._logged_step)
        line = {
            "step": state.step,
            "tokens": state.tokens,
            "training_flops": state.training_flops_per_token * state.tokens,
            "loss": state.mean_loss(),
            "learning_rate": rate,
            "grad_norm": result.grad_norm,
            "tokens_per_s": new_tokens / max(seconds - self._logged_s, 1e-9),
            **({"skipped_steps": state.skipped_steps} if state.skipped_steps or self.settings.skip_nonfinite else {}),
            **result.auxiliary,
        }
        self._logged_step, self._logged_s, state.recent_losses = state.step, seconds, []
        return line

    def conclude(self, line: dict[str, Any], validating: bool, stopping: Callable[[], object]) -> bool:
        """Writes a line of metrics.jsonl, with a validation if ``validating``; whether a checkpoint of it is due.

        Raises:
            EvaluationStopped: a signal came; ``state.unvalidated`` keeps the line.
        """
        state, improved = self.state, False
        if validating:
            state.unvalidated = line
            with self.clock.paused("validation"):
                score = self.validate(False, stopping)
                last = self.validate(True, stopping) if self.done and self.objective.final_score_differs else score
            state.unvalidated, line = None, line | last
            # only scores on the way are compared with each other
            improved = state.improve(score["validation_loss"]) and self.settings.keep_best
        if self.main:
            append_line(self.path / METRICS, line, kept=what_is_kept(self.path / CHECKPOINTS))
            self.lines.append(line)
            self.tracker.log(finite(line))
            self._show(line)
        return improved

    def validate(self, final: bool, stopping: Callable[[], object] | None = None) -> dict[str, float]:
        """Scores the model; "ffn_<name>" holds what the feed-forwards say of their use.

        Raises:
            NonFiniteError: the loss is NaN or infinite.
            EvaluationStopped: a signal came.
        """
        stop = None if stopping is None else lambda: any_process(self.accelerator, stopping())
        with self.model.collecting_statistics():
            score = self.objective.score(self.model, self.accelerator, final=final, stop=stop)
        check_validation(score["validation_loss"], f"step {self.state.step}", self.model)
        return score | {f"ffn_{name}": value for name, value in self.model.statistics().items()}

    def _show(self, line: dict[str, Any]) -> None:
        """The progress bar's figures, and a log line at validation points."""
        shown = {
            "loss": f"{line['loss']:.3f}",
            "lr": f"{line['learning_rate']:.1e}",
            "tok/s": f"{line['tokens_per_s']:,.0f}",
        }
        if self.budget.unit == "minutes":
            shown["min"] = f"{self.progress * self.budget.amount:.1f}/{self.budget.amount:g}"
        self.bar.set_postfix(shown, refresh=False)
        if "validation_loss" in line:
            logger.info("step %d: %s", line["step"], self.objective.describe(line))

    def _record(self) -> dict[str, Any]:
        self.state.training_s, self.state.aside_s = self.clock.seconds(), dict(self.clock.aside)
        self.state.wall_clock_s = time.perf_counter() - self._wall_start
        return self.state.record()

    def save(self) -> None:
        """Writes a checkpoint.

        Raises:
            NonFiniteError: a weight is NaN or infinite.
            UserError: the disk is full or cannot be written.
        """
        state, settings, scaler = self.state, self.settings, self.accelerator.scaler
        check_weights(self.model, state.step, self.accelerator)
        weights = full_weights(self.model, keep=self.main)
        training_state = {
            "optimizer": full_state(self.optimizer, keep=self.main),
            "scaler": scaler and scaler.state_dict(),
        }
        if not self.main:
            return
        metadata = {**self._record(), **self.objective.record(), **self.objective.fingerprints()}
        sync(self.path / METRICS)
        if self.resumed_from is not None and state.step == self.first_step:
            amend_checkpoint(self.resumed_from, metadata)
            return
        save_checkpoint(
            self.path / CHECKPOINTS, state.step, model=self.model, weights=weights, tokenizer=self.objective.tokenizer,
            state=training_state, metadata=metadata, keep=settings.keep_checkpoints,
            best=state.best["step"] if state.best and settings.keep_best else None,
        )  # fmt: skip

    def finish(self) -> dict[str, Any] | None:
        """Writes model/ and tells the tracker; the summary, on the main process only."""
        # a run that was stopped between its last step and its summary has nothing to train, but something to score
        last = self.lines[-1] if self.main and self.lines and self.lines[-1]["step"] == self.state.step else {}
        scored = broadcast(self.accelerator, "validation_loss" in last)
        score = last if scored else self.validate(final=True)
        weights = full_weights(self.model, keep=self.main)
        if not self.main:
            return None
        summary = run_summary(
            config=self.config.values,
            budget=asdict(self.budget),
            costs=self.objective.costs(self.model),  # one that depends on the tokens is measured by now
            results={**self.objective.summary(score, self.lines), **self.objective.fingerprints()},
            statistics={key.removeprefix("ffn_"): score[key] for key in score if key.startswith("ffn_")},
            record=self._record(),
            surroundings=self.surroundings,
        )
        summary["model_sha256"] = write_model(
            self.path / MODEL, self.model, self.objective.tokenizer, weights,
            card=model_card(summary), kept=what_is_kept(self.path / CHECKPOINTS),
        )  # fmt: skip
        self.tracker.finish(finite(summary))
        return summary
