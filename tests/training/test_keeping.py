"""Which checkpoints stay, and batches that are left out: what a run has besides its steps goes on with it."""

import math
from pathlib import Path

import pytest
import torch

import lookupffn.objectives.mlm as mlm
import lookupffn.training.step as step_module
from lookupffn.errors import UserError
from lookupffn.models import LookupRobertaForMaskedLM
from lookupffn.objectives.perplexity import EvaluationResult
from lookupffn.runs.checkpoint import list_checkpoints, newest_checkpoint, verify_checkpoint
from lookupffn.training.step import Updater
from tests.training.test_loop import Killed, kill_at, killed_run
from tests.training.tiny import Workspace, metrics, weights

SCORES = {2: 3.0, 4: 2.0, 6: 2.5, 8: 2.25, 10: 2.75}
SCORED = ("training.max_steps=10", "training.validate_every=2", "training.checkpoint_every=5",
          "training.keep_checkpoints=1")  # fmt: skip


def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation losses by the run's step."""
    original = Updater.update
    seen = [0]

    def update(*args, **kwargs):
        seen[0] = kwargs["step"] + 1
        return original(*args, **kwargs)

    monkeypatch.setattr(Updater, "update", update)
    monkeypatch.setattr(
        mlm, "evaluate_mlm", lambda *args, **kwargs: EvaluationResult(SCORES[seen[0]], math.exp(SCORES[seen[0]]), 5, 1)
    )


def steps(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in list_checkpoints(folder / "checkpoints")]


def test_the_best_and_the_last_stay(tiny: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    scripted(monkeypatch)
    folder = tmp_path / "run"
    summary = tiny.train(*SCORED, f"output_dir={folder}")
    assert steps(folder) == [4, 10]
    assert summary["best"] == {"step": 4, "validation_loss": 2.0}
    assert newest_checkpoint(folder / "checkpoints")[1]["best"] == summary["best"]
    assert verify_checkpoint(folder / "checkpoints" / "step-00000004")["best"] == summary["best"]


def test_the_best_is_known_after_a_kill(tiny: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        scripted(patch)
        kill_at(patch, 7)
        with pytest.raises(Killed):
            tiny.train(*SCORED, f"output_dir={folder}")
    assert steps(folder) == [4, 5]
    scripted(monkeypatch)
    assert tiny.train(*SCORED, f"output_dir={folder}")["best"]["step"] == 4
    assert steps(folder) == [4, 10]


def test_without_the_best(tiny: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    scripted(monkeypatch)
    tiny.train(*SCORED, f"output_dir={tmp_path}/run", "training.keep_best=false")
    assert steps(tmp_path / "run") == [10]


def poison(monkeypatch: pytest.MonkeyPatch, bad: set[int]) -> None:
    """Makes the gradient of some steps infinite."""
    now = [0]
    original, losses = Updater.update, LookupRobertaForMaskedLM.auxiliary_losses

    def update(*args, **kwargs):
        now[0] = kwargs["step"]
        return original(*args, **kwargs)

    def auxiliary(self: LookupRobertaForMaskedLM) -> dict[str, torch.Tensor]:
        if now[0] not in bad:
            return losses(self)
        return {"bad": math.inf * self.lm_head.bias.sum()}

    monkeypatch.setattr(Updater, "update", update)
    monkeypatch.setattr(LookupRobertaForMaskedLM, "auxiliary_losses", auxiliary)


SKIPPING = ("training.max_steps=10", "training.log_every=2", "training.validate_every=5", "training.skip_nonfinite=2")


@pytest.mark.slow
def test_bad_batches_are_left_out_and_counted(tiny: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    with monkeypatch.context() as patch:
        poison(patch, {1, 2, 4, 7, 8})
        summary = tiny.train(*SKIPPING, f"output_dir={whole}")
    lines = metrics(whole)
    assert [line["skipped_steps"] for line in lines] == [1, 2, 3, 3, 4, 5]
    assert (summary["steps"], summary["skipped_steps"]) == (10, 5)
    assert all(weight.isfinite().all() for weight in weights(whole).values())
    # the same after a kill between two of them, which are still counted as two in a row
    for step in (2, 6, 8):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            poison(patch, {1, 2, 4, 7, 8})
            kill_at(patch, step)
            tiny.train(*SKIPPING, "training.checkpoint_every=2", f"output_dir={broken}")
    poison(monkeypatch, {1, 2, 4, 7, 8})
    tiny.train(*SKIPPING, "training.checkpoint_every=2", f"output_dir={broken}")
    assert metrics(broken) == lines
    assert all(torch.equal(weight, weights(broken)[name]) for name, weight in weights(whole).items())


def test_too_many_in_a_row_stop_the_run(tiny: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "run"
    poison(monkeypatch, {4, 5, 6})
    expected = r"step 7: loss .*gradients in .*\(step-00000006\) is kept.*training.skip_nonfinite"
    with pytest.raises(step_module.NonFiniteError, match=expected):
        tiny.train(*SKIPPING, f"output_dir={folder}")
    # the user may allow for more of them and go on in the same folder
    assert tiny.train(*SKIPPING, "training.skip_nonfinite=3", f"output_dir={folder}")["skipped_steps"] == 3


def test_a_weight_that_is_none_is_never_skipped_over(tiny: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    original = Updater.update

    def poisoned(updater, *args, **kwargs):
        with torch.no_grad():
            updater.model.lm_head.bias[0] = math.nan
        return original(updater, *args, **kwargs)

    monkeypatch.setattr(Updater, "update", poisoned)
    with pytest.raises(UserError, match=r"step 1: loss nan.*non-finite weights in 1 parameters"):
        tiny.train(*SKIPPING, f"output_dir={tmp_path}/run")


def test_a_rewritten_step_does_not_push_out_the_whole_one(tiny: Workspace, tmp_path: Path, monkeypatch):
    """Training goes on before a damaged checkpoint: what it writes first has an earlier step."""
    folder = tmp_path / "run"
    more = ("training.validate_every=100", "training.keep_checkpoints=1", f"output_dir={folder}")
    killed_run(tiny, monkeypatch, 5, *more)
    whole = folder / "checkpoints" / "step-00000003"
    damaged = folder / "checkpoints" / "step-00000006"
    damaged.mkdir()
    killed_run(tiny, monkeypatch, 5, *more, "training.checkpoint_every=4")
    assert steps(folder) == [4, 6] and not whole.exists()
    assert tiny.train(*more)["steps"] == 6
