"""kill -9 at chosen points of a run, in a child process: the same command goes on to the same result."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.amp import GradScaler

import lookupffn.data.packing as packing
import lookupffn.objectives.mlm as mlm
import lookupffn.runs.checkpoint as checkpoint_module
import lookupffn.runs.records as records_module
import lookupffn.storage as files
import lookupffn.training.run as run_module
import lookupffn.training.trainer as loop
from lookupffn.errors import UserError
from lookupffn.runs.checkpoint import list_checkpoints, load_state
from lookupffn.runs.records import read_config
from lookupffn.training.step import Updater
from tests.training.forks import in_fork
from tests.training.test_loop import killed_run
from tests.training.tiny import Workspace, metrics, weights, workspace

pytestmark = pytest.mark.usefixtures("one_thread")

MORE = ("training.max_steps=10", "training.log_every=2", "training.validate_every=4", "training.checkpoint_every=3",
        "model.hidden_dropout_prob=0.1")  # fmt: skip


def die(*args: object, **kwargs: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    folder = tmp_path_factory.mktemp("kills") / "whole"
    workspace(tmp_path_factory.getbasetemp()).train(*MORE, f"output_dir={folder}")
    return folder


def nth(number: int, original: Callable, instead: Callable = die) -> Callable:
    """A function whose n-th call is another one."""
    calls = []

    def call(*args, **kwargs):
        calls.append(1)
        return (instead if len(calls) == number else original)(*args, **kwargs)

    return call


def half_a_line(path: Path, line: dict, *, kept: str) -> None:
    with path.open("a") as file:
        file.write('{"step": ' + str(line["step"]) + ', "lo')
    die()


def half_a_file(state: dict, path: Path) -> None:
    path.write_bytes(b"PK\x03\x04half")
    die()


def of_metrics(original: Callable) -> Callable:
    return lambda path, text: die() if path.name == "metrics.jsonl" else original(path, text)


# where it is killed; each is set up in the child alone
POINTS: dict[str, tuple[object, str, Callable[[Callable], Callable]]] = {
    "in a step": (Updater, "update", lambda original: nth(6, original)),
    "in a validation": (mlm, "evaluate_mlm", lambda original: nth(2, original)),
    "in a line of metrics": (loop, "append_line", lambda original: nth(4, original, half_a_line)),
    "cutting metrics": (records_module, "write_atomically", of_metrics),
    "in a file of a checkpoint": (torch, "save", lambda original: nth(2, original, half_a_file)),
    "before a checkpoint has its name": (files.os, "replace", lambda original: nth(4, original)),
    "before the old ones go": (checkpoint_module, "list_checkpoints", lambda original: nth(9, original)),
    "in the finished model": (loop, "write_model", lambda original: die),
    "before the summary": (loop, "write_atomically", lambda original: die),
}


@pytest.mark.parametrize("point", POINTS)
def test_killed(point: str, whole: Path, tiny: Workspace, tmp_path: Path):
    folder = tmp_path / "run"
    module, name, change = POINTS[point]

    def run() -> None:
        setattr(module, name, change(getattr(module, name)))
        tiny.train(*MORE, f"output_dir={folder}")

    if point == "cutting metrics":  # which a resumed run does
        assert in_fork(
            lambda: (setattr(Updater, "update", nth(6, Updater.update)), tiny.train(*MORE, f"output_dir={folder}"))
        )
    assert in_fork(run) == -signal.SIGKILL
    assert not (folder / "summary.json").exists()
    tiny.train(*MORE, f"output_dir={folder}")
    assert metrics(folder) == metrics(whole)
    assert all(torch.equal(weight, weights(folder)[name]) for name, weight in weights(whole).items())
    assert not list(folder.rglob("*.partial"))


@pytest.mark.parametrize("point", ["_encode", "write_tokens", "_count"])
def test_killed_while_preparing(point: str, whole: Path, tiny: Workspace, tmp_path: Path):
    fresh = (*MORE, f"cache_dir={tmp_path}/cache", f"output_dir={tmp_path}/run")

    def run() -> None:
        setattr(packing, point, die)
        tiny.train(*fresh)

    # a worker that is killed ends the run with a line, the run itself goes by the signal
    assert in_fork(run) == (2 if point == "_encode" else -signal.SIGKILL)
    tiny.train(*fresh)
    assert metrics(tmp_path / "run") == metrics(whole)


@pytest.mark.slow
def test_killed_members_of_a_sweep(whole: Path, tiny: Workspace, tmp_path: Path):
    def sweep() -> None:
        for seed in (0, 1):
            tiny.train(*MORE, f"seed={seed}", f"output_dir={tmp_path}", sweep_member=True)

    def killed() -> None:
        Updater.update = nth(15, Updater.update)  # in the second member
        sweep()

    assert in_fork(killed) == -signal.SIGKILL
    sweep()
    first, second = sorted(tmp_path.iterdir(), key=lambda path: "seed1" in path.name)
    assert metrics(first) == metrics(whole)
    tiny.train(*MORE, "seed=1", f"output_dir={tmp_path}/alone")
    assert metrics(second) == metrics(tmp_path / "alone")


def test_the_grad_scaler_goes_on(tiny: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    original = run_module.start_accelerator

    def scaling(*args):
        accelerator = original(*args)
        accelerator.scaler = GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
        return accelerator

    monkeypatch.setattr(run_module, "start_accelerator", scaling)
    tiny.train(*MORE, f"output_dir={tmp_path}/whole")
    killed_run(tiny, monkeypatch, 7, *MORE, f"output_dir={tmp_path}/broken")
    tiny.train(*MORE, f"output_dir={tmp_path}/broken")
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "whole")
    scales = [load_state(list_checkpoints(tmp_path / run / "checkpoints")[-1])["scaler"] for run in ("broken", "whole")]
    assert scales[0] == scales[1] and scales[0]["scale"] == 2.0**15


@pytest.mark.slow
@pytest.mark.parametrize("named", [True, False])
def test_the_model_a_run_started_from_may_go(
    named: bool, tiny: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.chdir(tmp_path)
    first = tmp_path / "first"
    tiny.train(f"output_dir={first}", "training.max_steps=1")
    more = [*MORE, f"init_from={first}/model", *(["output_dir=run"] if named else [])]
    expected = tiny.train(*[o for o in more if not o.startswith("output_dir")], "output_dir=whole")
    killed_run(tiny, monkeypatch, 7, *more)
    shutil.rmtree(first)
    found = tiny.train(*more)
    assert found["validation_loss"] == expected["validation_loss"] and "is gone; going on without it" in caplog.text
    folder = tmp_path / "run" if named else next((tmp_path / "outputs").iterdir())
    assert read_config(folder)["init_from"] == str(first / "model")
    with pytest.raises(UserError, match=r"no folder .*first/model"):
        tiny.train(*MORE, f"init_from={first}/model", "output_dir=another")
