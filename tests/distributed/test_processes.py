"""Runs of several processes on CPUs, started as a user starts them: the same numbers, whole checkpoints, no hanging."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lookupffn.config.sections import read_section
from lookupffn.distributed.processes import start_accelerator
from lookupffn.errors import UserError
from lookupffn.runs.checkpoint import list_checkpoints, newest_checkpoint
from lookupffn.training.run import failure
from tests.training.tiny import ROOT, Workspace, metrics, section, weights

TRAIN = str(ROOT / "train.py")
STEPS = ("training.max_steps=50", "training.log_every=1", "training.validate_every=25", "training.checkpoint_every=10")
TABLES = ("ffn.num_tables=16", "ffn.table_size=64", "training.max_steps=6", "training.log_every=1")


def torchrun(count: int) -> list[str]:
    return ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]


def start(*command: str, cwd: Path) -> subprocess.Popen:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, *command], cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def end(process: subprocess.Popen, timeout: float = 300) -> str:
    """Output of a process that ends by itself."""
    try:
        return process.communicate(timeout=timeout)[0]
    finally:
        process.kill()


def agree(found: list[dict], expected: list[dict]) -> None:
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours.get("validation_loss", 0) == pytest.approx(theirs.get("validation_loss", 0), rel=1e-6)


@pytest.mark.slow
def test_two_processes_stop_together_and_four_or_one_go_on(tiny: Workspace, tmp_path: Path):
    """Fifty steps, stopped by SIGTERM on two processes: the losses are those of one process that was left alone."""
    folder = tmp_path / "two"
    parts = (*STEPS, "training.gradient_accumulation_steps=2")
    overrides = tiny.overrides(*parts)
    running = start(*torchrun(2), TRAIN, *overrides, f"output_dir={folder}", cwd=tmp_path)
    deadline = time.monotonic() + 200
    while not list_checkpoints(folder / "checkpoints"):
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    running.send_signal(signal.SIGTERM)  # torchrun passes it on
    output = end(running, 60)
    stopped = newest_checkpoint(folder / "checkpoints")[1]["step"]
    assert f"stopped by SIGTERM. The last checkpoint (step-{stopped:08d}) is kept: repeat the command" in output, output
    assert running.returncode != 0 and not (folder / "summary.json").exists() and stopped < 50
    copy = shutil.copytree(folder, tmp_path / "one")

    output = end(start(*torchrun(4), TRAIN, *overrides, f"output_dir={folder}", cwd=tmp_path))
    assert f"resuming from step {stopped}" in output and output.count("validation perplexity  ") == 1, output
    assert json.loads((folder / "summary.json").read_text())["processes"] == 4
    expected = tmp_path / "whole"
    tiny.train(*STEPS, f"output_dir={expected}")
    agree(metrics(folder), metrics(expected))
    tiny.train(*parts, f"output_dir={copy}")
    agree(metrics(copy), metrics(expected))


@pytest.mark.slow
def test_sharded_tables_train_and_save_and_any_number_goes_on(tiny: Workspace, tmp_path: Path):
    """FSDP by accelerate's own configuration; its checkpoints are as whole as any."""
    folder, expected = tmp_path / "sharded", tmp_path / "expected"
    command = (
        "-m", "accelerate.commands.accelerate_cli", "launch", "--num_processes=2", "--use_fsdp", "--fsdp_version=2",
        "--fsdp_auto_wrap_policy=TRANSFORMER_BASED_WRAP", "--mixed_precision=no", "--num_machines=1",
        "--dynamo_backend=no", "--main_process_port=0", TRAIN, *tiny.overrides(*TABLES, f"output_dir={folder}"),
    )  # fmt: skip
    output = end(start(*command, cwd=tmp_path))
    assert (folder / "summary.json").exists(), output
    tiny.train(*TABLES, f"output_dir={expected}")
    assert metrics(folder)[0]["loss"] == pytest.approx(metrics(expected)[0]["loss"], rel=1e-6)
    assert weights(folder).keys() == weights(expected).keys()
    agree(metrics(folder), metrics(expected))

    alone = shutil.copytree(folder, tmp_path / "alone")
    sharded = weights(folder)
    lines = metrics(folder)
    for path in (folder, alone):  # as if killed after the third step
        (path / "summary.json").unlink()
        shutil.rmtree(path / "checkpoints" / "step-00000006")
    output = end(start(*command, cwd=tmp_path))
    assert "resuming from step 3" in output
    assert metrics(folder) == lines
    assert all(torch.equal(weight, sharded[name]) for name, weight in weights(folder).items())
    tiny.train(*TABLES, f"output_dir={alone}")
    agree(metrics(alone), lines)


@pytest.mark.slow
def test_a_worker_that_dies_ends_the_run(tiny: Workspace, tmp_path: Path):
    script = tmp_path / "dies.py"
    script.write_text(
        "import os, signal, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import train\n"
        "from lookupffn.training.step import Updater\n"
        "original = Updater.update\n"
        "def update(*args, **kwargs):\n"
        "    if kwargs['step'] == 4 and os.environ['RANK'] == '1':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return original(*args, **kwargs)\n"
        "Updater.update = update\n"
        "train.train()\n"
    )
    began = time.monotonic()
    running = start(*torchrun(2), str(script), *tiny.overrides(f"output_dir={tmp_path}/run"), cwd=tmp_path)
    output = end(running, 200)
    assert running.returncode != 0 and time.monotonic() - began < 200
    assert "Signal 9 (SIGKILL)" in output or "exitcode: -9" in output.replace(" ", "").replace(":", ": ")
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == ["step-00000003"]


@pytest.mark.parametrize(
    ("error", "processes", "line"),
    [
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: 9 bytes"), 1,
         "out of memory .*training.batch_size, training.gradient_accumulation_steps .*precision.*sequence_length"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB\nand more"), 1, "out of memory"),
        (MemoryError(), 1, r"out of memory \(MemoryError\)"),
        (RuntimeError("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1"), 2,
         "another process of this run is gone"),
        (RuntimeError("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1"), 1, None),
        (RuntimeError("a mistake of ours"), 2, None),
    ],
)  # fmt: skip
def test_a_failure_from_outside_is_one_line(error: Exception, processes: int, line: str | None):
    found = failure(error, processes)
    if line is None:
        assert found is None
    else:
        with pytest.raises(UserError, match=line):
            raise found
        assert "\n" not in str(found)


MORE = ("training.max_steps=12", "training.log_every=1", "training.validate_every=6", "training.micro_batches=4",
        "model.hidden_dropout_prob=0.1", "ffn.num_tables=16", "ffn.table_size=64")  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_one_and_two_processes_learn_the_same_weights(tiny: Workspace, tmp_path: Path):
    one, two = tmp_path / "one", tmp_path / "two"
    output = end(start(*torchrun(2), TRAIN, *tiny.overrides(*MORE, f"output_dir={two}"), cwd=tmp_path))
    assert (two / "summary.json").exists(), output
    tiny.train(*MORE, f"output_dir={one}")
    for ours, theirs in zip(metrics(two), metrics(one), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-7)
        assert ours.get("validation_loss", 0) == pytest.approx(theirs.get("validation_loss", 0), rel=1e-7)
    for name, weight in weights(one).items():
        assert torch.allclose(weight, weights(two)[name], rtol=1e-6, atol=1e-9), name


@pytest.mark.usefixtures("one_thread")
def test_parts_make_no_difference_to_what_is_learned(tiny: Workspace, tmp_path: Path):
    few = ("training.max_steps=4", "training.log_every=1")
    tiny.train(*few, f"output_dir={tmp_path}/plain")
    tiny.train(*few, "training.micro_batches=4", f"output_dir={tmp_path}/parts")
    for ours, theirs in zip(metrics(tmp_path / "parts"), metrics(tmp_path / "plain"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "world_size", "message"),
    [
        ({"micro_batches": 0}, 1, "at least 1"),
        ({"micro_batches": 3}, 1, "must divide batch_size=16"),
        ({"micro_batches": 4}, 8, "a multiple of the 8 processes"),
        ({"micro_batches": 4, "gradient_accumulation_steps": 2}, 1, "both set"),
    ],
)
def test_parts_that_cannot_be(changes: dict, world_size: int, message: str):
    with pytest.raises(UserError, match=message):
        read_section("training", {**section("training"), **changes}).check_processes(world_size)


@pytest.mark.parametrize(
    ("variable", "value", "advice"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "training.gradient_accumulation_steps"),
        ("ACCELERATE_DYNAMO_BACKEND", "inductor", "training.compile=true"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", "training.precision"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "not supported"),
        ("ACCELERATE_USE_MEGATRON_LM", "true", "not supported"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "not supported"),
        ("ACCELERATE_FP8_BACKEND", "TE", "not supported"),
    ],
)
def test_what_the_config_does_not_say_is_refused(
    variable: str, value: str, advice: str, tiny: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=f"{variable}={value} in the environment .*{advice}"):
        tiny.train(f"output_dir={tmp_path}/run")
    assert not (tmp_path / "run").exists()


def test_what_accelerate_launch_sets_by_itself_changes_nothing(
    tiny: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    more = ("training.gradient_accumulation_steps=2", "training.log_every=1")
    tiny.train(*more, f"output_dir={tmp_path}/alone")
    for variable, value in {
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
        "ACCELERATE_DYNAMO_BACKEND": "NO",
        "ACCELERATE_DYNAMO_MODE": "default",
        "ACCELERATE_MIXED_PRECISION": "no",
        "ACCELERATE_USE_FSDP": "false",
        "ACCELERATE_CPU_AFFINITY": "False",
    }.items():
        monkeypatch.setenv(variable, value)
    tiny.train(*more, f"output_dir={tmp_path}/launched")
    assert metrics(tmp_path / "launched") == metrics(tmp_path / "alone")


def test_an_evaluation_is_in_float32_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert start_accelerator().mixed_precision == "no"
