"""A race in pieces: what it carries, when it stops, and that it goes on elsewhere."""

import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from lookupffn.errors import UserError
from lookupffn.signals import Interrupted
from tests.scripts.loading import load_script
from tests.training.test_signals import same, signal_in_step
from tests.training.tiny import Workspace, workspace

pieces = load_script("race_in_pieces")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return workspace(tmp_path_factory.getbasetemp())


@pytest.mark.slow
def test_a_run_goes_on_with_text_that_has_moved(tiny: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = tmp_path / "train.txt"
    shutil.copy(tiny.root / "train.txt", text)
    run, whole = f"output_dir={tmp_path}/run", f"output_dir={tmp_path}/whole"
    tiny.train(whole)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        signal_in_step(patch, 3, signal.SIGTERM)
        tiny.train(f"data.train_files={text}", run)
    moved = text.rename(tmp_path / "moved.txt")
    moved.write_text(moved.read_text() + "more")
    with pytest.raises(UserError, match="the data is not what this run started with"):
        tiny.train(f"data.train_files={moved}", run)
    shutil.copy(tiny.root / "train.txt", moved)
    tiny.train(f"data.train_files={moved}", run)
    assert same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_a_piece_ends_in_time():
    stopping = (
        "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(9)); print(1, flush=True); time.sleep(60)"
    )
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
    began = time.monotonic()
    assert pieces._train([sys.executable, "-c", "raise SystemExit(3)"], 30, 1) == 3
    assert pieces._train([sys.executable, "-c", stopping], 1, 20) == 9
    assert pieces._train([sys.executable, "-c", deaf], 0.5, 0.5) == -signal.SIGKILL
    assert time.monotonic() - began < 20


def test_a_signal_is_handed_on(monkeypatch: pytest.MonkeyPatch):
    seen = []

    class Process:
        pid = 0

        def wait(self, seconds: float) -> int:
            if not seen:
                raise Interrupted(signal.SIGTERM)
            return 143

        def send_signal(self, signum: int) -> None:
            seen.append(signum)

        def poll(self) -> int:
            return 143

    monkeypatch.setattr(pieces.subprocess, "Popen", lambda *args, **kwargs: Process())
    with pytest.raises(Interrupted):
        pieces._train(["x"], 1, 1)
    assert seen == [signal.SIGTERM]


@pytest.mark.slow
def test_prepared_here_trained_there(
    tiny: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Without the text it was made of, in pieces of which the first has no time to finish."""
    text = tmp_path / "text"
    text.mkdir()
    for name in ("train", "validation"):
        shutil.copy(tiny.root / f"{name}.txt", text)
    overrides = [o for o in tiny.overrides("seed=0,1", "training.max_steps=20") if "cache" not in o]
    overrides = [o.replace(str(tiny.root), str(text)) for o in overrides]
    pieces.prepare(tmp_path / "here", overrides)
    with pytest.raises(UserError, match="holds another race"):
        pieces.prepare(tmp_path / "here", [*overrides, "optimizer.lr=1"])
    shutil.rmtree(text)
    there = (tmp_path / "here").rename(tmp_path / "it's there")
    with pytest.raises(SystemExit) as caught:
        pieces.run(there, 2 / 60, 1.9 / 60)
    assert caught.value.code == pieces.EXIT_MORE_TO_DO
    pieces.run(there, 4, 0.5)
    assert len(list(there.glob("runs/*/summary.json"))) == 2
    assert pieces.run(there, 4, 0.5) is None  # nothing left to do


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=docstrings,comments"], "differ in data: prepare a race for each"),
        (["seed=0,1", "training.batch_sizes=3"], "batch_size"),
        (["seed=0,1", "init_from=x"], "init_from"),
    ],
)
def test_races_that_cannot_be_carried(overrides: list[str], message: str, tmp_path: Path):
    with pytest.raises(UserError, match=message):
        pieces.prepare(tmp_path / "race", overrides)
    assert not (tmp_path / "race").exists()


def test_a_folder_that_was_not_prepared(tmp_path: Path):
    with pytest.raises(UserError, match="prepare"):
        pieces.run(tmp_path, 1, 0.1)
