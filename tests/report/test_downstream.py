import csv
import json

import pytest

from lookupffn.errors import UserError
from lookupffn.report.compare import compare_runs, read_report, tables
from tests.report.synthetic import GEMM_FLOPS, write_gemm, write_latency, write_run, write_tuned

GEMM = {"intermediate_size": 512, "hidden_act": "gelu"}


def write_downstream(folder):
    """Accuracy of gemm 0.80, 0.81, 0.83 by fine-tuning seed; of lookup 0.79, 0.81, 0.82; of a new lookup 0.70."""
    gemm, lookup = write_gemm(folder / "gemm", loss=4.0), write_run(folder / "lookup", loss=3.9)
    for seed, (one, other) in enumerate(((0.80, 0.79), (0.81, 0.81), (0.83, 0.82))):
        write_tuned(folder / f"t-gemm-{seed}", "gemm", pretrained_from=gemm, accuracy=one, seed=seed, options=GEMM,
                    flops=GEMM_FLOPS)  # fmt: skip
        write_tuned(folder / f"t-lookup-{seed}", pretrained_from=lookup / "model", accuracy=other, seed=seed)
        write_tuned(folder / f"t-new-{seed}", accuracy=0.69 + 0.01 * seed, seed=seed)
    return folder


def scores_of(folder, **options):
    return {score.label: score for score in read_report([folder], **options).scores}


def test_scores_beside_perplexity_and_costs(tmp_path):
    found = scores_of(write_downstream(tmp_path))
    assert list(found) == ["gemm", "lookup", "lookup, not pretrained"]
    lookup, gemm, new = found["lookup"], found["gemm"], found["lookup, not pretrained"]
    assert (lookup.median, lookup.range) == (0.81, (0.79, 0.82))
    assert lookup.perplexity.mean == pytest.approx(49.40, abs=0.01) and lookup.flops_ratio == pytest.approx(
        6.3, abs=0.1
    )
    assert lookup.pretraining_tokens == 1500 * 4096
    # differences -0.01, 0, -0.01: mean -0.006667, standard deviation 0.0057735, t(0.975, 2) is 4.30265
    assert lookup.against.pairs == 3 and lookup.against.mean == pytest.approx(-0.0066667, abs=1e-6)
    assert lookup.against.low == pytest.approx(-0.0066667 - 4.30265 * 0.0057735 / 3**0.5, abs=1e-6)
    assert lookup.against.verdict(lower_is_better=False) == "tie" and gemm.against is None
    # 0.10, 0.11, 0.11 over the same model that was not pretrained
    assert lookup.gain.mean == pytest.approx(0.1066667, abs=1e-6) and lookup.gain.low > 0.09
    assert lookup.gain.verdict(lower_is_better=False) == "better"
    assert new.perplexity is None and new.gain is None


@pytest.mark.slow
def test_tables_and_plots(tmp_path):
    write_downstream(tmp_path / "runs")
    latency = write_latency(
        tmp_path / "latency.json", {"ffn": "gemm", "ffn_options": GEMM, "us_per_token": 1.5, "ratio": 1.0}
    )
    text = compare_runs([tmp_path / "runs"], tmp_path / "out", latency=latency)
    assert "downstream scores:" in text and "lookup, not pretrained" in text
    files = {path.name for path in (tmp_path / "out" / "downstream").iterdir()}
    assert files == {"table.md", "table.csv", "score-sst2.png", "score-sst2.svg", "score-sst2.pdf"}
    markdown = (tmp_path / "out" / "downstream" / "table.md").read_text()
    assert (
        "| lookup | 3 | 81.00 | 79.00 to 82.00 | accuracy 81.00 | -0.67 | -2.10 to +0.77 | tie | +10.67 |" in markdown
    )
    rows = {row["variant"]: row for row in csv.DictReader((tmp_path / "out" / "downstream" / "table.csv").open())}
    assert float(rows["lookup"]["score_median"]) == 0.81 and rows["gemm"]["cpu_us_per_token"] == "1.5"
    assert rows["lookup, not pretrained"]["validation_perplexity"] == ""


def test_fine_tuning_runs_alone_find_what_they_started_from(tmp_path):
    write_downstream(tmp_path / "all")
    (tmp_path / "tuned").mkdir()
    for path in (tmp_path / "all").glob("t-*"):
        path.rename(tmp_path / "tuned" / path.name)
    report = read_report([tmp_path / "tuned"])
    assert not report.comparisons and report.scores[0].perplexity is not None
    (tmp_path / "all" / "gemm").rename(tmp_path / "gone")
    labels = {score.label: score for score in read_report([tmp_path / "tuned"]).scores}
    name = f"gemm, from {tmp_path / 'all' / 'gemm'} (not found)"
    assert labels[name].perplexity is None and labels[name].is_pretrained
    assert tables(report).keys() == {"downstream/table.md", "downstream/table.csv"}


def test_what_a_run_noted_of_its_pretraining_stands_in_for_a_run_that_is_gone(tmp_path):
    for before in range(2):
        noted = {"data": "docstrings", "tokens": 6_000_000, "seed": before, "validation_perplexity": 50.0 + 2 * before}
        for seed in range(2):
            where = tmp_path / f"gone-{before}" / "model"
            write_tuned(tmp_path / f"t-{before}-{seed}", pretrained_from=where, seed=seed, pretraining=noted)
    (score,) = read_report([tmp_path]).scores
    assert score.label == "lookup" and score.scores.keys() == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert score.perplexity.mean == 51.0 and score.pretraining_tokens == 6_000_000


def test_seeds_of_pretraining_are_paired_too(tmp_path):
    for seed in range(2):
        gemm = write_gemm(tmp_path / f"gemm-{seed}", seed=seed)
        lookup = write_run(tmp_path / f"lookup-{seed}", seed=seed)
        for tuning in range(2):
            values = {"seed": tuning, "accuracy": 0.8 + 0.01 * seed + 0.001 * tuning}
            write_tuned(tmp_path / f"t-gemm-{seed}-{tuning}", "gemm", pretrained_from=gemm, options=GEMM, **values)
            write_tuned(tmp_path / f"t-lookup-{seed}-{tuning}", pretrained_from=lookup, **values)
    found = scores_of(tmp_path)
    assert found["lookup"].against.pairs == 4 and found["lookup"].against.mean == 0
    assert len(found["lookup"].scores) == 4 and found["lookup"].perplexity.std == 0


def test_what_was_frozen_makes_a_variant_and_the_place_of_the_data_does_not(tmp_path):
    lookup = write_run(tmp_path / "lookup")
    for freeze in (None, "tables"):
        for seed in range(2):
            write_tuned(tmp_path / f"t-{freeze}-{seed}", pretrained_from=lookup, seed=seed, freeze=freeze)
    write_tuned(tmp_path / "t-again", pretrained_from=lookup, seed=0)
    report = read_report([tmp_path])
    assert {score.label: len(score.scores) for score in report.scores} == {"lookup": 2, "lookup, freeze tables": 2}
    assert [left.why.split(" of ")[0] for left in report.left_out] == ["repeats the seeds"]


def test_tasks_have_several_metrics_and_an_average(tmp_path):
    for ffn, gap in (("gemm", 0.0), ("lookup", 0.02)):
        start = write_gemm(tmp_path / ffn) if ffn == "gemm" else write_run(tmp_path / ffn)
        values = {"pretrained_from": start, "options": GEMM if ffn == "gemm" else None}
        for seed in range(2):
            at = tmp_path / f"t-{ffn}-{seed}"
            write_tuned(at / "sst2", ffn, seed=seed, accuracy=0.8 + gap, **values)
            write_tuned(at / "mrpc", ffn, seed=seed, task="mrpc", accuracy=0.6, validation_f1=0.8 + gap, **values)
            write_tuned(at / "own", ffn, seed=seed, task="classification", accuracy=0.1, **values)
    scores = {(score.task, score.label): score for score in read_report([tmp_path]).scores}
    assert scores["mrpc", "lookup"].median == pytest.approx(0.71)
    assert scores["mrpc", "lookup"].metrics.keys() == {"accuracy", "f1"}
    average = scores["average of mrpc, sst2", "lookup"]
    assert average.median == pytest.approx((0.71 + 0.82) / 2)
    assert average.against.mean == pytest.approx(0.015)
    markdown = tables(read_report([tmp_path]))["downstream/table.md"]
    assert "accuracy 60.00, f1 82.00" in markdown and "## average of mrpc, sst2" in markdown


def test_other_data_is_another_task(tmp_path):
    write_tuned(tmp_path / "a")
    write_tuned(tmp_path / "b", data_fingerprint="e" * 32)
    # and no average of the two
    assert {score.task for score in read_report([tmp_path]).scores} == {"sst2 (dddddddd)", "sst2 (eeeeeeee)"}


@pytest.mark.parametrize("odd", ["\0", "\ud800", "x" * 5000, [1], {}, 3, True, ""])
def test_an_origin_that_cannot_be_is_one_that_is_not_found(tmp_path, odd):
    write_tuned(tmp_path / "a", pretraining=odd, data_fingerprint=odd, pretrained_from="x")
    path = write_tuned(tmp_path / "b", seed=1, pretraining=odd, data_fingerprint=odd) / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pretrained_from": odd}))
    assert all(score.perplexity is None for score in read_report([tmp_path]).scores)
    assert tables(read_report([tmp_path]))["downstream/table.md"]


def test_undefined_scores_are_left_out_and_damage_is_one_line(tmp_path):
    run = write_tuned(tmp_path / "a", accuracy=0.5)
    write_tuned(tmp_path / "b", validation_pearson=None)
    report = read_report([tmp_path])
    assert [(left.path.name, left.why) for left in report.left_out] == [("b", "pearson not a number")]
    values = json.loads((run / "summary.json").read_text())
    for key in ("ffn_options", "seed", "ffn", "parameters"):
        (run / "summary.json").write_text(json.dumps(values | {key: "x" if key != "ffn" else 3}))
        with pytest.raises(UserError, match=r"damaged file .*summary\.json") as error:
            read_report([tmp_path])
        assert "\n" not in str(error.value)
