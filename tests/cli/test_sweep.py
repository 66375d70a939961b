"""What members of a sweep know of each other."""

import re
from pathlib import Path

import pytest

from lookupffn.cli.command_line import read_command_line
from lookupffn.cli.launch import run_main
from lookupffn.cli.sweep import differing_settings, plan_sweep
from tests.cli.test_launch import _restored  # noqa: F401


def plan(*arguments: str):
    return plan_sweep("train", read_command_line("train", ["-m", *arguments]), Path("x"), ())


@pytest.mark.slow
def test_settings_that_differ():
    sweep = plan("ffn=lookup", "ffn.num_tables=16,32", "ffn.table_size=64,256", "seed=0,1", "training.max_steps=3")
    assert sweep.size == 8 and sweep.swept == ("ffn.num_tables", "ffn.table_size", "seed")
    assert sweep.differing == ("ffn.num_tables", "ffn.table_size", "seed")


@pytest.mark.slow
def test_options_of_two_feed_forwards_are_no_difference():
    assert plan("ffn=gemm,lookup").differing == ("ffn.name",) or plan("ffn=gemm,lookup").differing == ()
    race = plan("experiment=race_tiny")
    assert race.size == 84
    assert {"ffn.num_tables", "ffn.num_probes", "ffn.rank", "ffn.projection", "seed"} <= set(race.differing)
    assert not any(name.startswith(("model.", "training.", "data.")) for name in race.differing)


@pytest.mark.slow
def test_members_are_numbered_and_end_in_a_table(capsys: pytest.CaptureFixture):
    seen = []

    def work(cfg):
        seen.append(differing_settings())
        return {"validation_perplexity": 10.0 + cfg.seed, "other": 1}

    run_main("train", work, ["-m", "ffn=gemm,lookup", "seed=0,1", "overwrite=true"], results=("validation_perplexity",))
    output = capsys.readouterr()
    assert re.findall(r"member (\d of \d): ffn=(\w+)", output.err) == [
        ("1 of 4", "gemm"), ("2 of 4", "gemm"), ("3 of 4", "lookup"), ("4 of 4", "lookup")
    ]  # fmt: skip
    rows = [line.split() for line in output.out.splitlines()]
    assert rows[0] == ["ffn", "seed", "validation_perplexity"]
    assert rows[2:] == [
        ["gemm", "0", "10.00"],
        ["gemm", "1", "11.00"],
        ["lookup", "0", "10.00"],
        ["lookup", "1", "11.00"],
    ]
    assert all("seed" in names for names in seen)


@pytest.mark.slow
def test_figures_that_few_members_have(capsys: pytest.CaptureFixture):
    def work(cfg):
        return {"loss": 2.0, "more": 1.5} if cfg.seed else {"loss": 3.0}

    run_main("train", work, ["-m", "seed=0,1"], results=("loss",), shown=("more", "none"))
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["seed", "loss", "more"] and rows[2:] == [["0", "3.000"], ["1", "2.000", "1.500"]]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["it's", "a b", "x=1,y", "${x}"])
def test_temporary_and_working_folders_of_any_name(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / where
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    seen = []
    run_main("train", lambda cfg: seen.append(cfg.seed), ["-m", "seed=0,1"])
    assert seen == [0, 1] and list(folder.iterdir()) == []
