"""Paths of any name, from the command line to config.yaml and back."""

from pathlib import Path

import pytest

from lookupffn.cli.command_line import compose, composing, read_command_line
from lookupffn.config.data import path_text
from lookupffn.config.run import resolve
from lookupffn.errors import UserError
from lookupffn.objectives import MaskedLanguageModelling
from lookupffn.runs.folder import open_run_folder
from lookupffn.runs.records import read_config


def test_path_text(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert path_text("output_dir", "~/runs/x") == "/home/me/runs/x"
    assert path_text("output_dir", "runs/~x") == "runs/~x" and path_text("output_dir", 2024) == "2024"
    assert path_text("output_dir", "") is None and path_text("output_dir", None) is None
    with pytest.raises(UserError, match="output_dir must be a path, not nan"):
        path_text("output_dir", float("nan"))
    for value in ("a\ud800", "a\0b"):
        with pytest.raises(UserError, match="checkpoint must be a path, and no file can be called 'a"):
            path_text("checkpoint", value)
    # what a name that is not UTF-8 becomes in Python
    assert path_text("checkpoint", "a\udcff") == "a\udcff"


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        (r'output_dir="cost\${x}"', "cost${x}"),
        ("output_dir=1_000", "1_000"),
        ("output_dir=1e3", "1e3"),
        ("output_dir=2024", "2024"),
        ("output_dir=it's", "it's"),
        ("output_dir=läufe", "läufe"),
        ("output_dir='a, b'", "a, b"),
        ("output_dir=true", "true"),
    ],
)
def test_a_folder_of_any_name_is_made_and_read_again(
    typed: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    command = read_command_line("train", [typed, "ffn=none"])
    with composing():
        config = resolve(compose("train", command.arguments), MaskedLanguageModelling.sections)
    folder = open_run_folder(config)
    try:
        assert [path.name for path in tmp_path.iterdir()] == [name]
        assert read_config(tmp_path / name) == config and config["output_dir"] == name
    finally:
        folder.release()
