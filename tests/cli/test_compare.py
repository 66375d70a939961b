import csv

import pytest

from lookupffn.cli import compare
from tests.report.synthetic import write_gemm, write_latency, write_race, write_run


def test_compares_and_prints(tmp_path, capsys):
    write_race(tmp_path / "runs")
    compare.main([str(tmp_path / "runs"), "--output", str(tmp_path / "out"), "--sort", "perplexity", "--no-plots"])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"tiny-docstrings-6.14M-tokens: {tmp_path / 'out'}"
    assert printed[2].split()[:3] == ["lookup,", "num_tables", "32"]
    assert (tmp_path / "out" / "table.csv").exists()


def test_a_mistake_is_one_line_and_status_2(tmp_path, capsys):
    write_run(tmp_path / "a")
    with pytest.raises(SystemExit) as stop:
        compare.main([str(tmp_path), "--x", "ffn.num_tabels"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: unknown setting of these runs 'ffn.num_tabels'") and error.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"a"}


def test_help_says_what_it_does(capsys):
    with pytest.raises(SystemExit) as stop:
        compare.main(["--help"])
    assert stop.value.code == 0
    assert "--x SETTING" in capsys.readouterr().out


def test_projected_times_are_read_from_files(tmp_path):
    write_race(tmp_path / "runs")
    gemm = {"ffn": "gemm", "ffn_options": {"intermediate_size": 512, "hidden_act": "gelu"}, "us_per_token": 3.0}
    path = write_latency(tmp_path / "other.json", gemm | {"ratio": 1.0}, device_name="another one", projected=True)
    compare.run([str(tmp_path / "runs"), "--projected", str(path), "--no-plots"])
    assert "µs a token on another one (projected)" in (tmp_path / "runs" / "comparison" / "table.md").read_text()


def test_times_are_projected_to_a_machine(tmp_path, capsys):
    write_gemm(tmp_path / "runs" / "gemm")
    tables = {"num_tables": 32, "table_size": 256, "block_size": 8}
    write_run(tmp_path / "runs" / "lookup", options=tables)
    compare.run([str(tmp_path / "runs"), "--hardware", "epyc_zen4_2core", "--no-plots"])
    with (tmp_path / "runs" / "comparison" / "table.csv").open(newline="") as file:
        rows = {row["ffn"]: row for row in csv.DictReader(file)}
    (column,) = [name for name in rows["gemm"] if name.startswith("projected_gemm_ratio")]
    assert float(rows["gemm"][column]) == pytest.approx(1.0) and float(rows["lookup"][column]) > 0
    with pytest.raises(SystemExit) as stop:
        compare.main([str(tmp_path / "runs"), "--hardware", "epic_zen4_2core"])
    assert stop.value.code == 2 and "did you mean 'epyc_zen4_2core'" in capsys.readouterr().err
