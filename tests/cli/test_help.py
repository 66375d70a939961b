import re

import pytest
from omegaconf import OmegaConf

from lookupffn.cli import help as help_room
from lookupffn.cli.choices import choices, groups
from lookupffn.cli.launch import run_main
from tests.training.tiny import compose


@pytest.mark.parametrize("command", ["train", "finetune", "evaluate"])
def test_names_every_choice_with_a_sentence(command: str):
    text = help_room.help_text(command, f"lookupffn-{command}")
    for group in groups(command):
        for name in choices(group):
            assert re.search(rf"^ +\*? *{re.escape(name)} +[A-Z].+[.?]$", text, re.MULTILINE), (group, name)
    assert "race/" not in text and f"usage: lookupffn-{command}" in text
    assert all(len(line) < 200 for line in text.splitlines())


def test_every_setting_it_names_exists():
    cfg = compose("train", "data=text")
    for name in help_room._SETTINGS["train"]:
        parent, _, key = name.rpartition(".")
        assert key in (OmegaConf.select(cfg, parent) if parent else cfg), name


def test_settings_of_a_command_are_named_with_their_comments():
    text = help_room.help_text("evaluate", "x")
    assert re.search(r"^  evaluation\.max_tokens=null  +null: of the run's own", text, re.MULTILINE)
    assert "overwrite=false " in help_room.help_text("finetune", "x") and "{" not in text


def test_help_runs_nothing(capsys: pytest.CaptureFixture):
    run_main("train", lambda cfg: pytest.fail("it ran"), ["--help"])
    assert "Settings that people change" in capsys.readouterr().out
