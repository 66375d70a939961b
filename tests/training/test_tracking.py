import contextlib
import json
import logging
import os
import socket
import sqlite3
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from lookupffn.config.sections import TRACKERS, read_choice
from lookupffn.errors import UserError
from lookupffn.training import tracking
from lookupffn.training.tracking import Tracker, start_tracker, wandb_mode

CONFIG = {
    "seed": 3,
    "ffn": {"name": "lookup"},
    "model": {"name": "tiny"},
    "data": {"name": "text"},
    "tracker": {"name": "wandb", "project": "lookupffn", "entity": None},
}


def start(folder: Path, config: dict = CONFIG, **more: bool) -> Tracker:
    settings = read_choice("tracker", config["tracker"], TRACKERS)
    return start_tracker(folder, settings, config, "lookup-tiny-text", **more)


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def test_mode(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    assert wandb_mode() == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password key\n")
    assert wandb_mode() == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://own.example")
    assert wandb_mode() == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "key")
    assert wandb_mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_mode() == "disabled"
    (tmp_path / "netrc").write_text("nonsense")
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY")
    assert wandb_mode() == "offline"


def test_unknown_tracker(tmp_path: Path):
    with pytest.raises(UserError, match="did you mean 'wandb'"):
        start(tmp_path, {**CONFIG, "tracker": {"name": "wandbb"}})


@pytest.mark.slow
def test_wandb_without_credentials_writes_into_the_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    reached = []
    original = socket.socket.connect

    def connect(self: socket.socket, address: object) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "localhost", "::1"):
            reached.append(address)
        return original(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    folder = tmp_path / "run"
    folder.mkdir()
    started = time.perf_counter()
    with caplog.at_level(logging.INFO):
        tracker = start(folder)
        assert time.perf_counter() - started < 0.5  # nothing is waited for
        tracker.log({"step": 1, "tokens": 64, "training_flops": 1e6, "loss": 2.0})
        tracker.finish({"validation_loss": 1.0})
    assert time.perf_counter() - started < 25 and not reached
    offline = list((folder / "wandb").glob("offline-run-*"))
    assert len(offline) == 1
    (line,) = (record.getMessage() for record in caplog.records)
    assert line == f"wandb is offline: what it tracks is in {offline[0]}; to upload it: wandb sync {offline[0]}"
    assert offline[0].name.endswith((folder / "wandb" / "run_id").read_text().strip())
    log = next(iter(offline[0].glob("run-*.wandb")))
    while log.stat().st_size <= 100:  # wandb's own process may still be writing after its finish()
        assert time.perf_counter() - started < 60
        time.sleep(0.05)


class FakeRun:
    def __init__(self, fail_at: str | None) -> None:
        self.fail_at, self.calls, self.summary = fail_at, [], {}
        self.settings = types.SimpleNamespace(sync_dir="wandb/offline-run-1")

    def __getattr__(self, name: str):
        def call(*args, **kwargs):
            self.calls.append((name, args, kwargs))
            if name == self.fail_at:
                raise RuntimeError(f"{name} broke")

        return call


def fake_wandb(monkeypatch: pytest.MonkeyPatch, fail_at: str | None = None, slow: float = 0.0) -> tuple[dict, FakeRun]:
    run, arguments = FakeRun(fail_at), {}

    def init(**kwargs):
        arguments.update(kwargs)
        time.sleep(slow)
        if fail_at == "init":
            raise RuntimeError("init broke")
        if fail_at == "online" and kwargs["mode"] == "online":
            raise TimeoutError("no route")
        return run

    module = types.SimpleNamespace(init=init, Settings=lambda **kwargs: kwargs)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return arguments, run


def test_what_wandb_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    arguments, run = fake_wandb(monkeypatch)
    for sweep_member in (False, True):
        tracker = start(tmp_path, sweep_member=sweep_member)
        tracker.log({"tokens": 1, "loss": 2.0})
        tracker.finish({"steps": 4})
        assert arguments["group"] == "lookup-tiny-text" and arguments["config"] == CONFIG
        assert arguments["job_type"] == ("sweep" if sweep_member else "train")
        assert arguments["mode"] == "offline" and arguments["dir"] == str(tmp_path)
        identifier = arguments["id"]  # the same when the run goes on
        assert identifier == (tmp_path / "wandb" / "run_id").read_text().strip()
    assert ("define_metric", ("*",), {"step_metric": "tokens"}) in run.calls
    assert ("log", ({"tokens": 1, "loss": 2.0},), {}) in run.calls
    assert run.summary == {"steps": 4}


@pytest.mark.parametrize("fail_at", ["init", "log", "finish"])
def test_a_failing_tracker_is_one_warning(fail_at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    fake_wandb(monkeypatch, fail_at)
    with caplog.at_level(logging.WARNING):
        tracker = start(tmp_path)
        for _ in range(3):
            tracker.log({"loss": 1.0})
        tracker.finish({})
    assert [record.getMessage() for record in caplog.records] == [
        f"tracking with wandb stopped ({fail_at} broke); the run goes on"
    ]


def test_credentials_without_network_go_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    monkeypatch.setenv("WANDB_API_KEY", "key")
    arguments, run = fake_wandb(monkeypatch, "online")
    tracker = start(tmp_path)
    tracker.log({"loss": 1.0})
    tracker.finish({})
    assert arguments["mode"] == "offline" and any(call[0] == "log" for call in run.calls)
    assert "cannot be reached" in caplog.text


def test_a_hanging_tracker_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    fake_wandb(monkeypatch, slow=3.0)
    monkeypatch.setattr(tracking, "FINISH_TIMEOUT_S", 0.1)
    started = time.perf_counter()
    tracker = start(tmp_path)
    tracker.log({"loss": 1.0})
    tracker.finish({})
    assert time.perf_counter() - started < 2
    assert "not waiting for it" in caplog.text


TRACKIO = """
import json, logging, sqlite3, sys
from pathlib import Path
from tests.training.test_tracking import start
logging.basicConfig(level=logging.INFO)
folder, config = Path(sys.argv[1]), json.loads(sys.argv[2])
for step in (1, 2):  # the second is a run that goes on
    tracker = start(folder, config)
    tracker.log({"step": step, "tokens": 64 * step, "loss": 2.0 / step})
    tracker.finish({"steps": step, "validation_loss": 1.0, "ffn": "lookup"} if step == 2 else None)
"""


@pytest.mark.slow
def test_trackio_keeps_a_run_on_this_machine(tmp_path: Path):
    folder = tmp_path / "run"
    folder.mkdir()
    config = {**CONFIG, "tracker": {"name": "trackio", "project": "p", "space_id": None}}
    done = subprocess.run(
        [sys.executable, "-c", TRACKIO, str(folder), json.dumps(config)],
        env={**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio"), "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout == "" and "stopped" not in done.stderr and "trackio show --project p" in done.stderr
    with contextlib.closing(sqlite3.connect(tmp_path / "trackio" / "p.db")) as base:
        rows = base.execute("select run_name, step, metrics from metrics order by id").fetchall()
    assert len({name for name, *_ in rows}) == 1
    logged = [(step, json.loads(text)) for _, step, text in rows]
    assert [(step, values["loss"]) for step, values in logged if "loss" in values] == [(1, 2.0), (2, 1.0)]
    assert logged[-1][1]["summary/validation_loss"] == 1.0


def test_a_tracker_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install trackio"):
        start(tmp_path, {**CONFIG, "tracker": {"name": "trackio", "project": "p"}})


def test_a_tracker_that_hangs_in_the_middle_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    _, run = fake_wandb(monkeypatch)
    monkeypatch.setattr(FakeRun, "log", lambda self, metrics: time.sleep(30), raising=False)
    monkeypatch.setattr(tracking, "FINISH_TIMEOUT_S", 0.2)
    started = time.perf_counter()
    tracker = start(tmp_path)
    for step in range(1000):
        tracker.log({"step": step})
    tracker.finish({"steps": 1000})
    assert time.perf_counter() - started < 5 and run.summary == {}
    assert "not waiting for it" in caplog.text
