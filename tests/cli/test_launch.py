"""How a command runs and ends."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lookupffn.cli.launch import run_main, sweep_member
from lookupffn.errors import UserError
from lookupffn.signals import Interrupted
from tests.training.tiny import ROOT


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def run_script(script: Path, *arguments: str, timeout: float) -> subprocess.CompletedProcess:
    """In its own folder, and in a process of its own."""
    command = [sys.executable, str(script), *arguments]
    return subprocess.run(
        command, cwd=script.parent, capture_output=True, text=True, timeout=timeout, env=environment()
    )


def test_run_main_runs_and_leaves_nothing_behind(tmp_path: Path):
    seen = []
    run_main("train", lambda cfg: seen.append((cfg.ffn.name, sweep_member())), ["ffn=gemm"])
    assert seen == [("gemm", False)]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("too\nbad"), 2, "error: too bad"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Interrupted(signal.SIGTERM), 143, "stopped by SIGTERM"),
        (OSError(28, "No space left on device", "x"), 2, "No space left on device: x"),
    ],
)
def test_run_main_ends_with_one_line(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture, tmp_path: Path
):
    def fail(cfg: object) -> None:
        raise error

    with pytest.raises(SystemExit) as caught:
        run_main("train", fail, [])
    assert caught.value.code == status
    output = capsys.readouterr()
    assert output.out == "" and line in output.err and output.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_sweep_goes_on_after_a_failed_member(capsys: pytest.CaptureFixture, tmp_path: Path):
    seen = []

    def work(cfg: object) -> None:
        seen.append((cfg.ffn.name, cfg.seed, sweep_member()))
        if cfg.seed == 0:
            raise UserError(f"bad seed of {cfg.ffn.name}")

    with pytest.raises(SystemExit) as caught:
        run_main("train", work, ["-m", "ffn=gemm,lookup", "seed=0,1"])
    assert caught.value.code == 2
    assert seen == [(name, seed, True) for name in ("gemm", "lookup") for seed in (0, 1)]
    output = capsys.readouterr().err
    assert "2 of the sweep's members failed, the first with: bad seed of gemm" in output
    assert output.count("ffn=lookup seed=1") == 1  # not by Hydra too
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_signal_ends_the_whole_sweep(capsys: pytest.CaptureFixture):
    seen = []

    def work(cfg: object) -> None:
        seen.append(cfg.seed)
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit) as caught:
        run_main("train", work, ["-m", "seed=0,1,2"])
    assert caught.value.code == 143 and seen == [0]
    assert capsys.readouterr().err.endswith("stopped by SIGTERM\n")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_members_run_by_other_engines(launcher: str, tmp_path: Path):
    """In processes of their own, where they see their config, and their failures come home."""
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from lookupffn.errors import UserError\n"
        "from lookupffn.cli.launch import run_main, sweep_member\n"
        "def main(cfg):\n"
        "    if cfg.seed == 1:\n"
        "        raise UserError('bad seed')\n"
        "    Path(f'{cfg.ffn.name}-{cfg.seed}-{sweep_member()}').touch()\n"
        "if __name__ == '__main__':\n"
        "    run_main('train', main)\n"
    )

    done = run_script(script, "-m", f"hydra/launcher={launcher}", "ffn=gemm", "seed=1,2", timeout=600)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "1 of the sweep's members failed, the first with: bad seed" in done.stderr
    assert {p.name for p in tmp_path.glob("*-True")} == {"gemm-2-True"}


@pytest.mark.slow
def test_members_at_once_are_stopped_and_killed_and_go_on(tmp_path: Path):
    """Two of three run at once. SIGTERM: each keeps a checkpoint. One is killed: a line; the rest is done at last."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, time\n"
        "from pathlib import Path\n"
        "from lookupffn.cli.launch import run_main\n"
        "from lookupffn.signals import deferring\n"
        "def main(cfg):\n"
        "    begun, kept = Path(f'begun-{cfg.seed}'), Path(f'kept-{cfg.seed}')\n"
        "    with deferring() as stopping:\n"
        "        begun.write_text(str(os.getpid()))\n"
        "        while not stopping() and not Path('go').exists():\n"
        "            time.sleep(0.05)\n"
        "        kept.touch()\n"
        "    Path(f'done-{cfg.seed}').touch()\n"
        "if __name__ == '__main__':\n"
        "    run_main('train', main)\n"
    )
    arguments = ("-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=0,1,2")

    def start() -> tuple[subprocess.Popen, list[int]]:
        command = [sys.executable, str(script), *arguments]
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=environment())
        begun = [tmp_path / f"begun-{seed}" for seed in (0, 1)]
        while not all(path.exists() and path.read_text() for path in begun):
            assert process.poll() is None
            time.sleep(0.1)
        return process, [int(path.read_text()) for path in begun]

    def end(process: subprocess.Popen) -> tuple[int, str]:
        error = process.communicate(timeout=120)[1]
        assert "Traceback" not in error, error
        for path in tmp_path.glob("begun-*"):
            path.unlink()
        return process.returncode, error

    process, _ = start()
    process.send_signal(signal.SIGTERM)
    assert end(process)[0] == 143
    assert {p.name for p in tmp_path.glob("*-[0-9]")} == {"kept-0", "kept-1"}

    process, members = start()
    os.kill(members[0], signal.SIGKILL)
    status, error = end(process)
    assert status == 2 and error.count("a member's process was killed") == 1

    (tmp_path / "go").touch()
    done = run_script(script, *arguments, timeout=120)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in tmp_path.glob("done-*")} == {"done-0", "done-1", "done-2"}


@pytest.mark.slow
def test_optuna_minimises_what_train_returns(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(
        "from lookupffn.cli.launch import run_main\n"
        "def main(cfg):\n"
        "    return {'distance': abs(cfg.ffn.num_tables - 20), 'probes': cfg.ffn.num_probes}\n"
        "run_main('train', main, results=('distance', 'probes'))\n"
    )
    done = run_script(script, "-m", "experiment=optuna_lookup", "hydra.sweeper.n_trials=3", timeout=300)
    assert done.returncode == 0, done.stderr
    results = next(tmp_path.rglob("optimization_results.yaml")).read_text()
    assert "num_tables" in results and "solutions" in results


def test_command_line_of_the_scripts(tmp_path: Path):
    def call(*command: str) -> subprocess.CompletedProcess:
        environment = {**os.environ, "PYTHONPATH": ""}
        return subprocess.run(
            [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, timeout=120, env=environment
        )

    shown = call(str(ROOT / "train.py"), "--cfg", "job", "ffn=gemm")
    assert shown.returncode == 0 and "name: gemm" in shown.stdout
    wrong = call(str(ROOT / "evaluate.py"), "checkpont=x")
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and "'checkpoint'" in wrong.stderr
    assert list(tmp_path.iterdir()) == []
