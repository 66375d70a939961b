"""Files of a run folder, a stranger's among them: read as plain data, or refused in one line before memory is spent."""

import json
import os
from pathlib import Path

import pytest

from lookupffn.errors import UserError
from lookupffn.runs.records import read_config, read_metrics, read_summary, run_folders, truncate_metrics

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


def refused(call, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_what_open_run_folder_writes_reads_back(tmp_path: Path):
    text = "a: 2024-01-01\nlr: 1.0e-05\nname: 'null'\nempty: null\nlist:\n- 1\n- 2.5\n"
    (tmp_path / "config.yaml").write_text(text)
    assert read_config(tmp_path) == {"a": "2024-01-01", "lr": 1e-5, "name": "null", "empty": None, "list": [1, 2.5]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "aliases are not read"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("- 1", "is not the config of a run"),
        ("1: 2", "is not the config of a run"),
        ("a: [", "cannot read"),
        ("x: " + "[" * 5000, "cannot read"),
        ("a: " + "b" * 2**20, "larger than"),
    ],
)
def test_strange_configs(text: str, message: str, tmp_path: Path):
    (tmp_path / "config.yaml").write_text(text)
    refused(lambda: read_config(tmp_path), message)


@pytest.mark.parametrize(("name", "read"), [("config.yaml", read_config), ("summary.json", read_summary)])
def test_pipes_and_devices(name: str, read, tmp_path: Path):
    os.mkfifo(tmp_path / name)
    refused(lambda: read(tmp_path), "not an ordinary file")
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    refused(lambda: read(tmp_path), "not an ordinary file")
    (tmp_path / name).unlink()
    refused(lambda: read(tmp_path), "No such file")
    (tmp_path / name).write_bytes(b"\xff\xfe")
    refused(lambda: read(tmp_path), "not text")


def test_metrics(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(tmp_path) == []
    refused(lambda: read_metrics(tmp_path, strict=True), "No such file")
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (2, 4, 6)) + '{"step": 8, "lo')
    assert [line["step"] for line in read_metrics(tmp_path)] == [2, 4, 6]
    assert [line["step"] for line in read_metrics(tmp_path, 4)] == [2, 4]
    refused(lambda: read_metrics(tmp_path, strict=True), "line 4 is not a line of metrics")


def test_run_folders(tmp_path: Path):
    for name, files in {
        "a/finished": ["summary.json"],
        "a/begun": ["config.yaml", "metrics.jsonl"],
        "a/locked": ["config.yaml", ".lock"],
        "a/begun/model": ["summary.json"],
        "b": ["config.yaml"],
        ".hidden": ["summary.json"],
    }.items():
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        for file in files:
            (tmp_path / name / file).touch()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    found = run_folders([tmp_path, tmp_path / "a", tmp_path / "link"])
    assert [str(path.relative_to(tmp_path)) for path in found] == ["a/begun", "a/finished", "a/locked"]
    refused(lambda: run_folders([tmp_path / "nowhere"]), "no folder")


def test_metrics_are_cut_at_the_checkpoint(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(tmp_path) == []
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (2, 4, 6)) + '{"step": 8, "lo')
    assert [line["step"] for line in read_metrics(tmp_path)] == [2, 4, 6]
    truncate_metrics(path, 4)
    assert path.read_text() == '{"step": 2}\n{"step": 4}\n'
