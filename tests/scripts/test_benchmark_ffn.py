import json

import pytest

from lookupffn import UserError
from tests.scripts.loading import load_script


@pytest.fixture(scope="module")
def script():
    return load_script("benchmark_ffn")


@pytest.fixture
def quick(script, monkeypatch):
    monkeypatch.setattr(
        "lookupffn.profiling.timing.machine_peaks", lambda repeat: {"gflops": 100.0, "read_gbs": 10.0, "copy_gbs": 10.0}
    )
    return script


def test_measures_prints_and_saves(quick, tmp_path, capsys):
    saved = tmp_path / "folder" / "figures.json"
    quick.main(
        [
            *("--hidden-size", "32", "64", "--tokens", "1", "20", "--dtype", "float32", "bfloat16", "int8"),
            *("--set", "num_tables=4", "table_size=16", "--repeat", "1", "--json", str(saved)),
        ]
    )
    printed = capsys.readouterr().out
    assert printed.count("lookup d=") == 12 and "num_tables=4" in printed
    results = json.loads(saved.read_text())["results"]
    assert len(results) == 12
    assert all(r["us_per_token"] > 0 and r["ratio"] > 0 and r["gflops"] > 0 and r["gbs"] > 0 for r in results)


def test_training_of_any_feed_forward(quick, capsys):
    quick.main(
        ["--hidden-size", "32", "--tokens", "20", "--mode", "training", "--ffn", "gemm", "lookup", "--repeat", "1"]
    )
    assert capsys.readouterr().out.count(" training") == 2


def test_the_bars_are_those_of_the_project(script):
    assert [(case.tokens, case.dtype, case.mode, case.bar) for case in script.bars()][:4] == [
        (8192, "float32", "inference", 4.0),
        (128, "float32", "inference", 3.0),
        (1, "float32", "inference", 4.0),
        (8192, "float32", "inference", 4.0),
    ]


def test_plots(quick, tmp_path):
    pytest.importorskip("matplotlib")
    quick.main(["--hidden-size", "32", "64", "--tokens", "4", "--repeat", "1", "--plot", str(tmp_path)])
    assert {path.name for path in tmp_path.iterdir()} == {"ratio-hidden_size.png", "ratio-tokens.png"}


@pytest.mark.parametrize("arguments", [["--set", "num_tables"], ["--set", "nmu_tables=3"], ["--tokens", "0"]])
def test_mistakes_are_one_line(quick, arguments):
    with pytest.raises(UserError) as error:
        quick.main(["--hidden-size", "32", *arguments])
    assert "\n" not in str(error.value)
