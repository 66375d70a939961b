"""SIGINT and SIGTERM at every point of a run: a checkpoint, a line, and the same result when it goes on."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch

import lookupffn.objectives.mlm as mlm
from lookupffn import signals
from lookupffn.runs.checkpoint import list_checkpoints, newest_checkpoint
from lookupffn.signals import Interrupted
from lookupffn.training.step import Updater
from tests.training.tiny import Workspace, metrics, weights

MORE = ("training.max_steps=10", "training.log_every=4", "training.validate_every=5", "training.checkpoint_every=100",
        "model.hidden_dropout_prob=0.1")  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.training.tiny import workspace

    folder = tmp_path_factory.mktemp("signals") / "whole"
    workspace(tmp_path_factory.getbasetemp()).train(*MORE, f"output_dir={folder}")
    return folder


def signal_in_step(monkeypatch: pytest.MonkeyPatch, number: int, *signums: int) -> None:
    """Sends signals while a step is under way."""
    original = Updater.update

    def update(*args, **kwargs):
        if kwargs["step"] == number:
            for signum in signums:
                signal.raise_signal(signum)
        return original(*args, **kwargs)

    monkeypatch.setattr(Updater, "update", update)


def signal_in_validation(monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    """Sends SIGTERM before a batch of the first validation."""
    original, asked = mlm.evaluate_mlm, []

    def evaluate(*args, stop, **kwargs):
        def ask() -> bool:
            asked.append(1)
            if len(asked) == batch:
                signal.raise_signal(signal.SIGTERM)
            return stop()

        return original(*args, stop=stop and ask, **kwargs)

    monkeypatch.setattr(mlm, "evaluate_mlm", evaluate)


def same(a: Path, b: Path) -> bool:
    first, second = weights(a), weights(b)
    return metrics(a) == metrics(b) and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
# between two lines; in a step that is logged; in one that is validated; in the last
@pytest.mark.parametrize("step", [1, 3, 4, 9])
def test_the_step_is_finished_and_kept(
    signum: int, step: int, whole: Path, tiny: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_in_step(patch, step, signum)
        expected = rf"stopped by {signals.name(signum)}. The last checkpoint \(step-0*{step + 1}\) is kept: repeat"
        with pytest.raises(Interrupted, match=expected) as caught:
            tiny.train(*MORE, f"output_dir={folder}")
    assert caught.value.exit_status == 128 + signum
    assert not (folder / "summary.json").exists() and not (folder / ".lock").exists()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    tiny.train(*MORE, f"output_dir={folder}")
    assert same(folder, whole)


def test_a_validation_is_given_up_and_done_again(
    whole: Path, tiny: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, more = tmp_path / "run", ("evaluation.batch_size=4", *MORE)
    for _ in range(2):  # also in the one that a resumed run begins with
        with monkeypatch.context() as patch, pytest.raises(Interrupted, match=r"\(step-00000005\) is kept"):
            signal_in_validation(patch, 3)
            tiny.train(*more, f"output_dir={folder}")
        assert [line["step"] for line in metrics(folder)] == [4]
    tiny.train(*more, f"output_dir={folder}")
    assert [line["step"] for line in metrics(folder)] == [4, 5, 8, 10]
    assert metrics(folder)[1]["validation_loss"] == pytest.approx(metrics(whole)[1]["validation_loss"], rel=1e-6)
    assert newest_checkpoint(folder / "checkpoints")[1]["best"]["step"] in (5, 10)


def test_before_the_first_step_nothing_is_left(tiny: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mlm, "prepare_data", lambda *args: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted, match="No checkpoint had been written yet"):
        tiny.train(f"output_dir={tmp_path}/run")
    assert list(tmp_path.iterdir()) == []


def test_sigterm_may_come_twice(tiny: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """From a batch system, and from the launcher that it signalled too."""
    signal_in_step(monkeypatch, 1, signal.SIGTERM, signal.SIGTERM)
    with pytest.raises(Interrupted):
        tiny.train(f"output_dir={tmp_path}/run")
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == ["step-00000002"]


def in_fork(function) -> int:
    """The status of a child that runs a function."""
    child = os.fork()
    if child == 0:
        try:
            function()
        except Interrupted as stop:
            os._exit(stop.exit_status)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_second_sigint_ends_the_process_at_once():
    def deaf() -> None:
        with signals.deferring() as stopping:
            signal.raise_signal(signal.SIGINT)
            assert stopping() == signal.SIGINT
            signal.raise_signal(signal.SIGINT)
            time.sleep(60)

    assert in_fork(deaf) == -signal.SIGINT  # 130 to a shell


def test_a_signal_outside_the_loop_raises():
    def busy() -> None:
        with signals.handling():
            signal.raise_signal(signal.SIGTERM)
            time.sleep(60)

    assert in_fork(busy) == 143


def test_a_deferred_signal_raises_at_the_end():
    before = signal.getsignal(signal.SIGINT)  # ignored where the tests run in the background of a shell
    with pytest.raises(Interrupted), signals.deferring() as stopping:
        assert stopping() is None
        signal.raise_signal(signal.SIGTERM)
        assert stopping() == signal.SIGTERM
    assert signals.received() is None and signal.getsignal(signal.SIGINT) is before


def test_forked_workers_leave_signals_to_their_parent():
    with signals.deferring() as stopping:
        assert in_fork(lambda: signal.raise_signal(signal.SIGTERM)) == 0
        assert stopping() is None
