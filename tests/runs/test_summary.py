"""Machine and software, as a summary records them."""

import subprocess
from pathlib import Path

import pytest
import torch

from lookupffn.runs import summary
from lookupffn.runs.summary import git_commit, versions
from lookupffn.storage import to_json


def test_commit_says_when_files_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(summary, "ROOT", tmp_path.resolve())
    assert git_commit() is None

    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
        return subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "a")
    commit = git("rev-parse", "HEAD").strip()
    (tmp_path / "new").write_text("1")
    assert git_commit() == commit
    (tmp_path / "a").write_text("2")
    assert git_commit() == f"{commit}-dirty"
    (tmp_path / "inside").mkdir()
    monkeypatch.setattr(summary, "ROOT", (tmp_path / "inside").resolve())
    assert git_commit() is None


def test_versions():
    found = versions()
    assert torch.__version__.startswith(found["torch"])  # PyPI's build for CUDA has its name in one of them
    assert {"python", "transformers", "lookupffn"} <= set(found) and None not in found.values()


def test_json_has_no_infinities():
    values = {"a": float("inf"), "b": [float("nan"), 1.5], "c": {"d": -float("inf")}, "e": "NaN"}
    assert to_json(values) == '{"a": null, "b": [null, 1.5], "c": {"d": null}, "e": "NaN"}\n'
