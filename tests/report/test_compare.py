import csv
import itertools
import json
import math
import shutil
from pathlib import Path

import pytest

from lookupffn.errors import UserError
from lookupffn.layers import ffn_names
from lookupffn.report.compare import compare_runs, default_output, read_report
from lookupffn.report.inference_times import read_times
from lookupffn.report.plots.labels import spread_out
from lookupffn.report.plots.style import look
from lookupffn.report.plots.tradeoff import chains
from tests.report.synthetic import write_gemm, write_latency, write_race, write_run

PLOTS = {"perplexity-flops", "perplexity-training-flops", "validation-loss", "validation-training"}
FORMATS = ("png", "svg", "pdf")


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def records(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_tables_and_plots_of_a_race(tmp_path):
    write_race(tmp_path / "runs")
    text = compare_runs([tmp_path / "runs"], tmp_path / "out")
    expected = {f"{plot}.{kind}" for plot in PLOTS for kind in FORMATS}
    assert files(tmp_path / "out").keys() == {"table.md", "table.csv", "comparison.json", *expected}
    assert "lookup, num_tables 32" in text and "warning" not in text

    markdown = (tmp_path / "out" / "table.md").read_text()
    figures = "| 49.40 ± 0.49 | 3.9000 ± 0.0100 | 5.0000 ± 0.0000 | 125% | 0.083 | 6.30 |"
    assert f"| 3 | lookup, num_tables 32 | 3 {figures}" in markdown
    difference = "| -0.1000 | -0.1000 to -0.1000 | +0.0000 | better |"
    assert f"| 3 | lookup, num_tables 32 {difference}  |  |  | itself |" in markdown
    assert "## Left out" not in markdown and "Warning" not in markdown

    rows = {row["variant"]: row for row in records(tmp_path / "out" / "table.csv")}
    lookup = rows["lookup, num_tables 32"]
    # the CSV gives back every bit
    losses = [3.9 - 0.01, 3.9, 3.9 + 0.01]
    assert float(lookup["validation_loss"]) == pytest.approx(math.fsum(losses) / 3, abs=0)
    assert lookup["seeds"] == "0 1 2" and lookup["pareto_flops"] == "True" and lookup["pareto_cpu"] == ""
    assert json.loads(lookup["settings"])["ffn.num_tables"] == 32
    assert lookup["verdict_against_gemm"] == "better" and rows["gemm"]["verdict_against_gemm"] == ""


def test_the_terminal_says_what_verdicts_are_against(tmp_path):
    write_race(tmp_path / "race")
    head, *lines = compare_runs([tmp_path / "race"], tmp_path / "out", plots=False).splitlines()[1:6]
    assert head.endswith("GEMM's gain  against gemm") and sum(line.endswith("  worse") for line in lines) == 2
    for path in tmp_path.glob("race/[gn]*"):
        shutil.rmtree(path)
    head, small, large = compare_runs([tmp_path / "race"], tmp_path / "without", plots=False).splitlines()[1:4]
    assert head.endswith("FFN MFLOP  against best lookup")
    assert small.endswith("  worse") and large.endswith("  0.083")


@pytest.mark.slow
def test_the_same_input_gives_the_same_files(tmp_path):
    write_run(tmp_path / "runs" / "a")
    write_run(tmp_path / "runs" / "b", "none", flops=0)
    for name in ("one", "two"):
        compare_runs([tmp_path / "runs"], tmp_path / name)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_groups_get_folders_and_left_out_runs_are_named(tmp_path):
    write_run(tmp_path / "runs" / "short")
    write_run(tmp_path / "runs" / "long", steps=3000)
    begun = write_run(tmp_path / "runs" / "begun")
    (begun / "summary.json").unlink()
    text = compare_runs([tmp_path / "runs"], tmp_path / "out", plots=False)
    names = {"tiny-docstrings-6.14M-tokens", "tiny-docstrings-12.3M-tokens"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*names, "horizons", "comparison.json"}
    assert text.startswith("2 groups that cannot be compared with each other: they differ in tokens (6,144,000;")
    assert "begun: unfinished, at step 1,500" in text
    for name in names:
        markdown = (tmp_path / "out" / name / "table.md").read_text()
        assert "One of 2 groups" in markdown and "begun: unfinished" in markdown
    with pytest.raises(UserError, match="differ in tokens"):
        compare_runs([tmp_path / "runs"], tmp_path / "strict", strict=True, plots=False)
    assert not (tmp_path / "strict").exists()


def test_an_earlier_comparison_gives_way_and_nothing_else(tmp_path):
    write_run(tmp_path / "runs" / "short")
    write_run(tmp_path / "runs" / "long", steps=3000)
    out = tmp_path / "out"
    compare_runs([tmp_path / "runs"], out, plots=False)
    (out / "tiny-docstrings-12.3M-tokens" / "notes.txt").write_text("mine")
    compare_runs([tmp_path / "runs" / "short"], out, plots=False)
    left = files(out).keys()
    assert "table.md" in left and not any(name.startswith("horizons") for name in left)
    assert "tiny-docstrings-12.3M-tokens/notes.txt" in left
    assert not any(name.startswith("tiny") and "notes" not in name for name in left)
    assert not (out / "tiny-docstrings-6.14M-tokens").exists()


def test_a_folder_of_something_else_is_refused(tmp_path):
    write_run(tmp_path / "runs" / "a")
    with pytest.raises(UserError, match="no comparison wrote"):
        compare_runs([tmp_path / "runs"], tmp_path / "runs", plots=False)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="no comparison wrote"):
        compare_runs([tmp_path / "runs"], tmp_path / "file", plots=False)
    out = tmp_path / "out"
    out.mkdir()
    (out / "comparison.json").write_text('{"files": ["../runs/a/summary.json"]}')
    with pytest.raises(UserError, match="damaged file"):
        compare_runs([tmp_path / "runs"], out, plots=False)
    assert (tmp_path / "runs" / "a" / "summary.json").exists()


def test_damage_leaves_no_output_and_the_old_one_whole(tmp_path):
    run = write_run(tmp_path / "runs" / "a")
    out = tmp_path / "out"
    compare_runs([run], out, plots=False)
    before = files(out)
    (run / "metrics.jsonl").write_text("{")
    with pytest.raises(UserError, match=r"metrics\.jsonl"):
        compare_runs([run], out, plots=False)
    assert files(out) == before
    with pytest.raises(UserError, match=r"metrics\.jsonl"):
        compare_runs([run], tmp_path / "new", plots=False)
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "out"}


@pytest.mark.slow
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
    compare_runs([tmp_path / "runs"], tmp_path / "out", plots=False)
    markdown = (tmp_path / "out" / "table.md").read_text()
    assert "lookup, act x\\|y z" in markdown and "share\\|kept" in markdown and "| 0.25 |" in markdown
    assert "gemm at the model's own intermediate size and of none" in markdown


@pytest.mark.slow
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
    looks = {name: look(name) for name in ffn_names()}
    assert len({colour for colour, _ in looks.values()}) == len({marker for _, marker in looks.values()}) == len(looks)
    # somebody's own: the same in every process, and never like one of ours
    assert look("my_ffn") == ("#117733", "H")
    assert not {look(f"ffn{i}")[0] for i in range(100)} & {colour for colour, _ in looks.values()}


def lines_of(tmp_path, *variants):
    for number, (options, lr, loss) in enumerate(variants):
        flops = 1000 * options["tables"] * options.get("probes", 1)
        write_run(tmp_path / str(number), options=options, lr=lr, loss=loss, flops=flops)
    (comparison,) = read_report([tmp_path]).comparisons
    found = chains(comparison.rows, {row.number: row.flops for row in comparison.rows})
    return [[(cost, round(math.log(value), 3)) for cost, value in line] for line in found]


def test_lines_join_what_differs_in_one_option_of_the_feed_forward(tmp_path):
    small, large, probes = {"tables": 8}, {"tables": 16}, {"tables": 16, "probes": 2}
    # of two rates at one cost the better one counts
    variants = [(small, 0.1, 4.0), (large, 0.1, 3.9), (large, 0.2, 3.8)]
    assert lines_of(tmp_path / "one", *variants) == [[(8000, 4.0), (16000, 3.8)]]
    # tables and probes both differ: no line
    assert lines_of(tmp_path / "two", (small, 0.1, 4.0), (probes, 0.1, 3.9)) == []
    grid = [(small, 0.1, 4.0), (large, 0.1, 3.9), (probes, 0.1, 3.7)]
    assert sorted(lines_of(tmp_path / "three", *grid)) == [[(8000, 4.0), (16000, 3.9)], [(16000, 3.9), (32000, 3.7)]]


@pytest.mark.slow
def test_perplexity_against_a_swept_setting(tmp_path):
    write_race(tmp_path / "runs")
    compare_runs([tmp_path / "runs"], tmp_path / "out", swept=["ffn.num_tables", "ffn.hidden_act"])
    for setting in ("ffn.num_tables", "ffn.hidden_act"):
        assert {f"perplexity-{setting}.{kind}" for kind in FORMATS} <= files(tmp_path / "out").keys()
    with pytest.raises(UserError, match=r"did you mean 'ffn\.num_tables'"):
        compare_runs([tmp_path / "runs"], tmp_path / "out", swept=["num_tables"])


def test_without_an_output_the_comparison_stands_beside_the_runs(tmp_path, monkeypatch):
    write_run(tmp_path / "race" / "a")
    write_run(tmp_path / "race" / "deep" / "b", seed=1)
    monkeypatch.chdir(tmp_path)
    for paths, folder in (
        (["race"], "race"), (["race/a"], "race"), (["race/a", "race/deep/b"], "race"), (["race/deep"], "race/deep"),
        ([str(tmp_path / "race")], str(tmp_path / "race")),
    ):  # fmt: skip
        assert default_output([Path(path) for path in paths]) == Path(folder) / "comparison"
    assert compare_runs([Path("race")], plots=False).startswith("tiny-docstrings-6.14M-tokens: race/comparison\n")
    # and again, with the comparison among the runs
    assert compare_runs([Path("race")], plots=False).count("seed") == 1
    with pytest.raises(UserError, match="give --output"):
        default_output([Path("/a"), Path("/b")])


@pytest.mark.slow
def test_projected_times_are_shown_and_drawn_beside_measured_ones(tmp_path):
    write_race(tmp_path / "runs")
    gemm = {"ffn": "gemm", "ffn_options": {"intermediate_size": 512, "hidden_act": "gelu"}, "us_per_token": 3.0}
    path = write_latency(tmp_path / "other.json", gemm | {"ratio": 1.0}, device_name="another one", projected=True)
    compare_runs([tmp_path / "runs"], tmp_path / "out", projected=[read_times(path)])
    assert {f"perplexity-another_one.{kind}" for kind in FORMATS} <= files(tmp_path / "out").keys()
    rows = {row["variant"]: row for row in records(tmp_path / "out" / "table.csv")}
    assert rows["gemm"]["projected_us_per_token.another one"] == "3.0" and rows["gemm"]["cpu_us_per_token"] == ""
    assert "Projected times: another one, 2 threads" in (tmp_path / "out" / "table.md").read_text()


def test_labels_are_spread_out():
    assert spread_out([10, 50], 10, 0, 100) == [10, 50]
    assert spread_out([50, 50, 52], 10, 0, 100) == pytest.approx([40.67, 50.67, 60.67], abs=0.01)
    assert spread_out([0, 0, 0], 10, 0, 100) == [0, 10, 20]
    assert spread_out([99, 100], 10, 0, 100) == [90, 100]
    heights = spread_out(sorted(range(0, 100, 3)), 10, 0, 100)
    assert all(b - a == pytest.approx(10) for a, b in itertools.pairwise(heights))


def test_gemm_alone_has_no_one_to_differ_from(tmp_path):
    write_gemm(tmp_path / "a")
    compare_runs([tmp_path / "a"], tmp_path / "out", plots=False)
    assert "## Differences" not in (tmp_path / "out" / "table.md").read_text()
