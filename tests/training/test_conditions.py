"""Hostile surroundings, the real ones where they can be had: no disk, no memory, no permission, an odd clock."""

import functools
import logging
import os
import resource
import tempfile
import time
from pathlib import Path

import pytest
import torch

import lookupffn.training.trainer as loop
from lookupffn.runs.checkpoint import list_checkpoints, verify_checkpoint
from lookupffn.runs.folder import open_run_folder
from lookupffn.runs.records import append_line, read_metrics, truncate_metrics
from tests.runs.test_run_folder import config
from tests.training.forks import USER_ERROR, in_fork, limited
from tests.training.test_loop import killed_run
from tests.training.tiny import Workspace, metrics, weights

NOBODY = 65534


@pytest.mark.slow
@pytest.mark.parametrize("size", [20_000, 200_000])  # the model does not fit; the optimizer's state does not
def test_full_disk_at_a_checkpoint(size: int, tiny: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole, folder, log = tmp_path / "whole", tmp_path / "run", tmp_path / "log"
    tiny.train(f"output_dir={whole}")
    killed_run(tiny, monkeypatch, 4, f"output_dir={folder}")

    def run() -> None:
        tiny.train(f"output_dir={folder}")

    assert in_fork(limited(resource.RLIMIT_FSIZE, size, run), log) == USER_ERROR
    message = log.read_text()
    assert "cannot write the checkpoint" in message and "The last checkpoint (step-00000003) is kept" in message
    assert "\n" not in message
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000003"]
    verify_checkpoint(folder / "checkpoints" / "step-00000003")
    run()
    assert metrics(folder) == metrics(whole)
    assert all(torch.equal(weight, weights(folder)[name]) for name, weight in weights(whole).items())


def test_full_disk_at_a_line_of_metrics(tmp_path: Path):
    path, log = tmp_path / "metrics.jsonl", tmp_path / "log"

    def write() -> None:
        for step in range(100):
            append_line(path, {"step": step, "loss": 1.0}, kept="The last checkpoint (step-00000003) is kept")

    assert in_fork(limited(resource.RLIMIT_FSIZE, 1000, write), log) == USER_ERROR
    expected = f"cannot write {path}: File too large. The last checkpoint (step-00000003) is kept: free some space"
    assert log.read_text().startswith(expected)
    whole = read_metrics(path.parent)
    assert [line["step"] for line in whole] == list(range(len(whole))) and 20 < len(whole) < 100


def test_full_disk_at_the_finished_model(tiny: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder, log = tmp_path / "run", tmp_path / "log"

    original = loop.write_model
    monkeypatch.setattr(
        loop, "write_model", lambda *args, **kwargs: limited(resource.RLIMIT_FSIZE, 20_000, original)(*args, **kwargs)
    )
    run = functools.partial(tiny.train, f"output_dir={folder}")
    assert in_fork(run, log) == USER_ERROR
    assert "cannot write the model" in log.read_text() and not (folder / "model").exists()
    assert not (folder / "summary.json").exists()
    monkeypatch.setattr(loop, "write_model", original)
    assert run()["steps"] == 6


def test_out_of_memory(tiny: Workspace, tmp_path: Path):
    log = tmp_path / "log"
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")

    def run() -> None:
        tiny.train(f"output_dir={tmp_path}/run", "training.batch_size=65536")

    assert in_fork(limited(resource.RLIMIT_AS, used + 2**29, run), log) == USER_ERROR
    message = log.read_text()
    assert message.startswith("out of memory (") and "\n" not in message
    for knob in ("training.batch_size", "gradient_accumulation_steps", "precision", "sequence_length"):
        assert knob in message
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_folder_that_may_only_be_read():
    with tempfile.TemporaryDirectory() as base:  # pytest's own folders are closed to others
        os.chmod(base, 0o555)
        log = Path(tempfile.gettempdir()) / f"{Path(base).name}.log"
        log.touch()
        log.chmod(0o666)

        def run() -> None:
            if os.getuid() == 0:  # whom no permission holds back
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            open_run_folder(config(output_dir=f"{base}/run"))

        try:
            assert in_fork(run, log) == USER_ERROR
            assert log.read_text() == f"cannot write in {base}/run: Permission denied; give another output_dir"
            assert os.listdir(base) == []
        finally:
            log.unlink()
            os.chmod(base, 0o755)


def test_a_clock_that_goes_backwards(tiny: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    tiny.train(f"output_dir={whole}")
    now = [time.time()]

    def backwards() -> float:
        now[0] -= 1000.0
        return now[0]

    monkeypatch.setattr(time, "time", backwards)
    killed_run(
        tiny, monkeypatch, 5, f"output_dir={folder}", "training.checkpoint_every=2", "training.validate_every=100"
    )
    first, second = list_checkpoints(folder / "checkpoints")
    os.utime(second, (0, 0))  # older than the first, by the clock
    for file in second.iterdir():
        os.utime(file, (0, 0))
    summary = tiny.train(f"output_dir={folder}")
    assert metrics(folder)[-1] == metrics(whole)[-1] and summary["training_s"] > 0 and first.name < second.name
    minutes = tiny.train(f"output_dir={tmp_path}/minutes", "training.max_minutes=0.002")
    assert 0.12 <= minutes["training_s"] < 60


def test_a_corpus_that_changed_is_prepared_anew(tiny: Workspace, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    text = tmp_path / "validation.txt"
    text.write_text((tiny.root / "validation.txt").read_text())
    more = (f"data.validation_files={text}", f"cache_dir={tmp_path}/cache", "training.max_steps=1")
    with caplog.at_level(logging.WARNING):
        first = tiny.train(*more, f"output_dir={tmp_path}/first")
        assert "has changed" not in caplog.text
        text.write_text(text.read_text()[:-1000])
        second = tiny.train(*more, f"output_dir={tmp_path}/second")
    assert f"{text} has changed since it was last read: it is prepared anew" in caplog.text
    assert first["data_fingerprint"] != second["data_fingerprint"]


def test_metrics_that_cannot_be_cut_are_as_they_were(tmp_path: Path):
    path, log = tmp_path / "metrics.jsonl", tmp_path / "log"
    for step in range(200):
        append_line(path, {"step": step}, kept="")
    before = path.read_text()
    assert in_fork(limited(resource.RLIMIT_FSIZE, 1000, lambda: truncate_metrics(path, 190)), log) == USER_ERROR
    assert "metrics.jsonl: File too large; it is as it was" in log.read_text()
    assert path.read_text() == before and [entry.name for entry in tmp_path.glob("*metrics*")] == ["metrics.jsonl"]
