import csv
import itertools
import json
import math

import pytest

from lookupffn.errors import UserError
from lookupffn.report.compare import compare_runs
from lookupffn.report.labels import spread_out
from lookupffn.report.plots import styles
from tests.report.synthetic import write_gemm, write_latency, write_race, write_run

PLOTS = {"perplexity-flops", "perplexity-training-flops", "validation-loss"}


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def records(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_tables_and_plots_of_a_race(tmp_path):
    write_race(tmp_path / "runs")
    text = compare_runs([tmp_path / "runs"], tmp_path / "out")
    expected = {f"{plot}.{kind}" for plot in PLOTS for kind in ("png", "svg")}
    assert files(tmp_path / "out").keys() == {"table.md", "table.csv", "comparison.json", *expected}
    assert "lookup, num_tables 32" in text and "warning" not in text

    markdown = (tmp_path / "out" / "table.md").read_text()
    assert "| 3 | lookup, num_tables 32 | 3 | 49.40 ± 0.49 | 3.9000 ± 0.0100 | 125% | 0.083 | 6.30 |" in markdown
    assert "| 3 | lookup, num_tables 32 | -0.1000 | 0.0100 | better |  |  | itself |" in markdown
    assert "## Left out" not in markdown and "Warning" not in markdown

    rows = {row["variant"]: row for row in records(tmp_path / "out" / "table.csv")}
    lookup = rows["lookup, num_tables 32"]
    # the CSV gives back every bit
    losses = [3.9 - 0.01, 3.9, 3.9 + 0.01]
    assert float(lookup["validation_loss"]) == pytest.approx(math.fsum(losses) / 3, abs=0)
    assert lookup["seeds"] == "0 1 2" and lookup["pareto_flops"] == "True" and lookup["pareto_cpu"] == ""
    assert json.loads(lookup["settings"])["ffn.num_tables"] == 32
    assert lookup["verdict_against_gemm"] == "better" and rows["gemm"]["verdict_against_gemm"] == ""


def test_the_same_input_gives_the_same_files(tmp_path):
    write_race(tmp_path / "runs")
    for name in ("one", "two"):
        compare_runs([tmp_path / "runs"], tmp_path / name)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_groups_get_folders_and_left_out_runs_are_named(tmp_path):
    write_run(tmp_path / "runs" / "short")
    write_run(tmp_path / "runs" / "long", steps=3000)
    begun = write_run(tmp_path / "runs" / "begun")
    (begun / "summary.json").unlink()
    text = compare_runs([tmp_path / "runs"], tmp_path / "out")
    names = {"tiny-docstrings-6.14M-tokens", "tiny-docstrings-12.3M-tokens"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*names, "comparison.json"}
    assert text.startswith("2 groups that cannot be compared with each other: they differ in tokens (6,144,000;")
    assert "begun: unfinished, at step 1,500" in text
    for name in names:
        markdown = (tmp_path / "out" / name / "table.md").read_text()
        assert "One of 2 groups" in markdown and "begun: unfinished" in markdown
    with pytest.raises(UserError, match="differ in tokens"):
        compare_runs([tmp_path / "runs"], tmp_path / "strict", strict=True)
    assert not (tmp_path / "strict").exists()


def test_an_earlier_comparison_gives_way_and_nothing_else(tmp_path):
    write_run(tmp_path / "runs" / "short")
    write_run(tmp_path / "runs" / "long", steps=3000)
    out = tmp_path / "out"
    compare_runs([tmp_path / "runs"], out)
    (out / "tiny-docstrings-12.3M-tokens" / "notes.txt").write_text("mine")
    compare_runs([tmp_path / "runs" / "short"], out)
    left = files(out).keys()
    assert "table.md" in left and "tiny-docstrings-12.3M-tokens/notes.txt" in left
    assert not any(name.startswith("tiny") and "notes" not in name for name in left)
    assert not (out / "tiny-docstrings-6.14M-tokens").exists()


def test_a_folder_of_something_else_is_refused(tmp_path):
    write_run(tmp_path / "runs" / "a")
    with pytest.raises(UserError, match="no comparison"):
        compare_runs([tmp_path / "runs"], tmp_path / "runs")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="no comparison"):
        compare_runs([tmp_path / "runs"], tmp_path / "file")
    out = tmp_path / "out"
    out.mkdir()
    (out / "comparison.json").write_text('{"files": ["../runs/a/summary.json"]}')
    with pytest.raises(UserError, match="damaged file"):
        compare_runs([tmp_path / "runs"], out)
    assert (tmp_path / "runs" / "a" / "summary.json").exists()


def test_damage_leaves_no_output_and_the_old_one_whole(tmp_path):
    run = write_run(tmp_path / "runs" / "a")
    out = tmp_path / "out"
    compare_runs([run], out)
    before = files(out)
    (run / "metrics.jsonl").write_text("{")
    with pytest.raises(UserError, match=r"metrics\.jsonl"):
        compare_runs([run], out)
    assert files(out) == before
    with pytest.raises(UserError, match=r"metrics\.jsonl"):
        compare_runs([run], tmp_path / "new")
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "out"}


def test_cpu_times_are_shown_and_drawn(tmp_path):
    write_race(tmp_path / "runs")
    gemm = {"intermediate_size": 512, "hidden_act": "gelu"}
    latency = write_latency(
        tmp_path / "latency.json", {"ffn": "gemm", "ffn_options": gemm, "us_per_token": 1.5, "ratio": 1.0}
    )
    compare_runs([tmp_path / "runs"], tmp_path / "out", latency=latency)
    assert (tmp_path / "out" / "perplexity-cpu.png").exists()
    rows = {row["variant"]: row for row in records(tmp_path / "out" / "table.csv")}
    assert rows["gemm"]["cpu_us_per_token"] == "1.5" and rows["none"]["cpu_us_per_token"] == ""
    for damage in ("{", '{"variants": []}', '{"variants": [{"ffn": "gemm"}]}'):
        latency.write_text(damage)
        with pytest.raises(UserError, match=r"latency\.json"):
            compare_runs([tmp_path / "runs"], tmp_path / "out", latency=latency)


def test_markdown_survives_strange_texts(tmp_path):
    write_run(tmp_path / "runs" / "a", options={"act": "x|y\nz"})
    write_run(tmp_path / "runs" / "b", options={"act": "w"}, statistics={"share|kept": 0.25})
    compare_runs([tmp_path / "runs"], tmp_path / "out")
    markdown = (tmp_path / "out" / "table.md").read_text()
    assert "lookup, act x\\|y z" in markdown and "share\\|kept" in markdown and "| 0.25 |" in markdown
    assert "gemm at the model's own intermediate size and of none" in markdown


def test_many_variants_and_odd_runs_can_be_drawn(tmp_path):
    for i in range(14):
        write_run(tmp_path / "many" / str(i), f"ffn{i % 11}", options={"n": i}, loss=4 + i / 100, flops=1000 * (i + 1))
    compare_runs([tmp_path / "many"], tmp_path / "out")
    # one point, and one validation
    write_run(tmp_path / "one", steps=500, exit_step=None)
    compare_runs([tmp_path / "one"], tmp_path / "out-one")
    write_run(tmp_path / "free", "none", flops=0)
    compare_runs([tmp_path / "free"], tmp_path / "out-free")
    # no validation in metrics.jsonl: no curves
    write_run(tmp_path / "short", steps=200, exit_step=None)
    compare_runs([tmp_path / "short"], tmp_path / "out-short")
    assert not list((tmp_path / "out-short").glob("validation-loss.*"))


def test_a_feed_forward_looks_the_same_whatever_else_is_there():
    assert styles(["gemm", "lookup"]).items() <= styles(["fff", "gemm", "lookup", "none", "yoso"]).items()
    looks = styles([f"ffn{i}" for i in range(9)] + ["gemm", "lookup", "none"])
    assert len(set(looks.values())) == 12


def test_labels_are_spread_out():
    assert spread_out([10, 50], 10, 0, 100) == [10, 50]
    assert spread_out([50, 50, 52], 10, 0, 100) == pytest.approx([40.67, 50.67, 60.67], abs=0.01)
    assert spread_out([0, 0, 0], 10, 0, 100) == [0, 10, 20]
    assert spread_out([99, 100], 10, 0, 100) == [90, 100]
    heights = spread_out(sorted(range(0, 100, 3)), 10, 0, 100)
    assert all(b - a == pytest.approx(10) for a, b in itertools.pairwise(heights))


def test_gemm_alone_has_no_one_to_differ_from(tmp_path):
    write_gemm(tmp_path / "a")
    compare_runs([tmp_path / "a"], tmp_path / "out")
    assert "## Differences" not in (tmp_path / "out" / "table.md").read_text()
