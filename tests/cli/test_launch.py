"""What a mistyped command is answered, and how an entry point ends."""

import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lookupffn.cli.choices import CONFIG_DIR
from lookupffn.cli.command_line import read_command_line
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


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        (["ffn=lokup"], ["unknown ffn 'lokup'", "'lookup'"]),
        (["model=tinny"], ["unknown model 'tinny'", "'tiny'"]),
        (["data=docstring"], ["unknown data 'docstring'", "'docstrings'"]),
        (["tokenizer=trainde"], ["'trained'"]),
        (["experiment=paper_small"], ["unknown experiment", "paper_small_512_bh4"]),
        (["ffn.num_tabels=3"], ["option of ffn 'lookup'", "'num_tabels'", "'num_tables'"]),
        (["ffn=gemm", "ffn.num_tables=3"], ["option of ffn 'gemm'", "intermediate_size"]),
        (["training.maxsteps=3"], ["'maxsteps'", "'max_steps'"]),
        (["training.max_steps.x=3"], ["training.max_steps has no options"]),
        (["sead=1"], ["unknown setting 'sead'", "'seed'", "experiment"]),
        (["nothing.at=all"], ["unknown setting 'nothing'"]),
        (["tokenizer=null"], ["tokenizer=null chooses nothing"]),
        (["ffn=3"], ["unknown ffn '3'"]),
        (["ffn={name:gemm}"], ["unknown ffn"]),
        (["~training.max_steps=3"], ["max_steps"]),
        (["ffn"], ["cannot read the override 'ffn'"]),
        (["ffn=["], ["cannot read the override 'ffn=['"]),
        (["ffn=gemm,lookup"], ["-m"]),
        (["-m", "ffn=gemm,lokup"], ["unknown ffn 'lokup'"]),
        (["-m", "ffn=gemm,lookup", "ffn.num_tables=3"], ["option of ffn 'gemm'"]),
        (["-m", "ffn=choice(gemm,lokup)"], ["unknown ffn 'lokup'"]),
        (["-m", "ffn=lookup", "ffn.table_size=64,100"], ["power of two", "(in the sweep: ffn.table_size=100)"]),
        (["-m", "model.hidden_size=128,64", "model.num_attention_heads=2,3"], ["num_attention_heads=3"]),
        (["-m", "seed=0,abc"], ["seed must be", "seed=abc"]),
    ],
)
def test_mistakes_are_one_line_that_names_the_nearest(command: list[str], parts: list[str]):
    with pytest.raises(UserError) as caught:
        read_command_line("train", command)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("command", "multirun"),
    [
        (["ffn=gemm", "seed=3", "training.max_steps=3", "output_dir=x"], False),
        (["experiment=paper_small_512_dense", "ffn.num_tables=64"], False),
        (["data=text", "data.train_files='a b/*.jsonl'", "data.validation_files=[x.txt,y.txt]"], False),
        (["-m", "ffn=gemm,lookup", "seed=range(0,3)"], True),
        (["-m", "ffn=glob(*)"], True),
        (["+anything=1", "hydra.verbose=true"], False),
        (["--cfg", "job"], False),
        (["--help", "ffn=lokup"], False),
    ],
)
def test_valid_commands_pass(command: list[str], multirun: bool):
    assert read_command_line("train", command).multirun is multirun


def test_evaluate_says_to_choose_data_first():
    with pytest.raises(UserError, match="data has no options yet: choose one first, as in data=<name>"):
        read_command_line("evaluate", ["data.validation_files=x"])


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


def test_a_sweep_stored_in_an_experiment_is_checked_and_can_be_narrowed(tmp_path: Path):
    folder = tmp_path / "configs"
    shutil.copytree(CONFIG_DIR, folder)
    (folder / "experiment" / "mine.yaml").write_text(
        "# @package _global_\nhydra:\n  sweeper:\n    params: {ffn: 'gemm,lokup', seed: '0,1'}\n"
    )
    with pytest.raises(UserError, match="unknown ffn 'lokup'"):
        read_command_line("train", ["-m", "experiment=mine"], folder)
    assert read_command_line("train", ["-m", "experiment=mine", "ffn=gemm"], folder).multirun


@pytest.mark.parametrize("part", ["launcher", "sweeper"])
def test_an_engine_that_is_not_installed(part: str):
    with pytest.raises(UserError, match=f"pip install hydra-nosuch-{part}"):
        read_command_line("train", ["-m", f"hydra/{part}=nosuch", "seed=0,1"])


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

    command = [sys.executable, str(script), "-m", f"hydra/launcher={launcher}", "ffn=gemm", "seed=1,2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 2 and "error: bad seed" in done.stderr and "Traceback" not in done.stderr
    assert {p.name for p in tmp_path.glob("*-True")} == {"gemm-2-True"}


def test_optuna_minimises_what_train_returns(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(
        "from lookupffn.cli.launch import run_main\n"
        "def main(cfg):\n"
        "    return abs(cfg.ffn.num_tables - 20), cfg.ffn.num_probes\n"
        "run_main('train', main)\n"
    )
    command = [sys.executable, str(script), "-m", "experiment=optuna_lookup", "hydra.sweeper.n_trials=3"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=environment)
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
