"""What a mistyped command is answered, and what Hydra gets of one that is right."""

import argparse
import shutil
from pathlib import Path

import pytest

from lookupffn.cli.choices import CONFIG_DIR
from lookupffn.cli.command_line import parse_override, quoted, read_command_line
from lookupffn.cli.commands import check_pretraining
from lookupffn.errors import UserError


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
        read_command_line("train", command, check=check_pretraining)
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


def test_a_sweep_stored_in_an_experiment_is_checked_and_can_be_narrowed(tmp_path: Path):
    folder = tmp_path / "configs"
    shutil.copytree(CONFIG_DIR, folder)
    (folder / "experiment" / "mine.yaml").write_text(
        "# @package _global_\nhydra:\n  sweeper:\n    params: {ffn: 'gemm,lokup', seed: '0,1'}\n"
    )
    with pytest.raises(UserError, match="unknown ffn 'lokup'"):
        read_command_line("train", ["-m", "experiment=mine"], folder)
    assert read_command_line("train", ["-m", "experiment=mine", "ffn=gemm"], folder).multirun


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("launcher=rq", "pip install hydra-rq-launcher"),
        ("launcher=ray_aws", "pip install hydra-ray-launcher"),
        ("sweeper=nevergrad", "pip install hydra-nevergrad-sweeper"),
        # no package of a mistyped name is recommended
        ("launcher=jolib", "unknown hydra/launcher 'jolib': did you mean 'joblib'"),
        ("sweeper=nosuch", "unknown hydra/sweeper 'nosuch'"),
    ],
)
def test_an_engine_that_is_not_installed(engine: str, message: str):
    with pytest.raises(UserError, match=message):
        read_command_line("train", ["-m", f"hydra/{engine}", "seed=0,1"])


@pytest.mark.parametrize(
    "text", ["/a b/it's", "it\\'s", "back\\", "\\\\'", "${x}", "$\\{x", "a=b,c", '"', "", "ä", "[1]", "1_000", "{a: b}"]
)
def test_quoted_values_are_read_as_they_are(text: str):
    value = parse_override(f"key={quoted(text)}").value()
    assert value == text.replace("${", "\\${")  # which OmegaConf then reads as ${


@pytest.mark.parametrize(
    ("typed", "given"),
    [
        ("output_dir=1_000", "output_dir='1_000'"),
        ("output_dir=1e3", "output_dir='1e3'"),
        ("output_dir=2024", "output_dir='2024'"),
        ("output_dir=true", "output_dir='true'"),
        ("output_dir=läufe und mehr", "output_dir='läufe und mehr'"),
        ("output_dir=it's", "output_dir='it\\'s'"),
        ("output_dir=null", "output_dir=null"),
        ("output_dir=runs/a", "output_dir=runs/a"),
        ("data.train_files=1e3", "data.train_files='1e3'"),
        ("tracker.project=1_0", "tracker.project='1_0'"),
        ("seed=1_000", "seed=1_000"),
        ("training.max_tokens=1e6", "training.max_tokens=1e6"),
    ],
)
def test_what_is_typed_for_a_text_stays_as_it_is(typed: str, given: str):
    assert read_command_line("train", ["data=text", typed]).arguments == ["data=text", given]


def test_texts_in_a_sweep_stay_as_they_are():
    command = read_command_line("evaluate", ["-m", "checkpoint=1e3,1_000"])
    assert command.arguments == ["-m", "checkpoint='1e3','1_000'"]


def test_members_of_the_race_are_taken_but_not_listed():
    read_command_line("train", ["ffn=race/gemm_half"])
    with pytest.raises(UserError, match="unknown ffn 'gemm_hal'") as caught:
        read_command_line("train", ["ffn=gemm_hal"])
    assert "race" not in str(caught.value)
    with pytest.raises(UserError, match="did you mean 'race/gemm_half'"):
        read_command_line("train", ["ffn=race/gemm_hal"])
    with pytest.raises(UserError, match="option of ffn 'gemm' 'race'"):
        read_command_line("train", ["ffn=gemm", "ffn.race=1"])


def test_hydras_parser_is_made_where_argparse_checks_help_texts(monkeypatch: pytest.MonkeyPatch):
    """As Python 3.14 does; Hydra 1.3 has a help text that is made when it is shown."""
    add_argument = argparse.ArgumentParser.add_argument

    def check_help(parser, action):
        if "%" in (action.help or ""):
            action.help % {}

    def checked(parser, *names, **options):
        action = add_argument(parser, *names, **options)
        parser._check_help(action)
        return action

    monkeypatch.setattr(argparse._ActionsContainer, "_check_help", check_help, raising=False)
    monkeypatch.setattr(argparse.ArgumentParser, "add_argument", checked)
    assert read_command_line("train", ["ffn=gemm", "seed=3"]).arguments == ["ffn=gemm", "seed=3"]
    with pytest.raises(TypeError):
        argparse.ArgumentParser().add_argument("--x", help=object())
