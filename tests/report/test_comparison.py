import math

import pytest

from lookupffn.report.comparison import compare
from lookupffn.report.groups import comparable_groups
from lookupffn.report.inference_times import read_times
from lookupffn.report.runs import find_runs
from lookupffn.report.significance import BETTER, EARLY, TIE, UNKNOWN, WORSE
from tests.report.synthetic import write_gemm, write_latency, write_race, write_run


def comparison_of(folder, **options):
    (group,), _ = comparable_groups(find_runs([folder]).runs)
    return compare(group, **options)


def rows_of(comparison):
    return {row.label: row for row in comparison.rows}


def test_means_spreads_and_shares(tmp_path):
    comparison = comparison_of(write_race(tmp_path))
    rows = rows_of(comparison)
    assert [row.label for row in comparison.rows] == ["none", "lookup, num_tables 16", "lookup, num_tables 32", "gemm"]
    assert [row.number for row in comparison.rows] == [1, 2, 3, 4]
    gemm, none = rows["gemm"], rows["none"]
    assert gemm.loss.mean == pytest.approx(4.0) and gemm.loss.std == pytest.approx(0.01)
    assert gemm.perplexity.mean == pytest.approx(sum(math.exp(4 + d) for d in (-0.01, 0, 0.01)) / 3)
    shares = {label: row.share for label, row in rows.items()}
    assert shares == pytest.approx(
        {"none": 0.0, "gemm": 1.0, "lookup, num_tables 16": 0.5, "lookup, num_tables 32": 1.25}
    )
    assert none.flops_ratio is None and gemm.flops_ratio == 1
    assert (comparison.gemm, comparison.none) == (gemm, none)
    assert comparison.lookup is rows["lookup, num_tables 32"]
    assert comparison.horizon == pytest.approx(6.0) and not comparison.warnings


def test_sorted_by_perplexity(tmp_path):
    comparison = comparison_of(write_race(tmp_path), sort="perplexity")
    assert [row.label for row in comparison.rows][::3] == ["lookup, num_tables 32", "none"]


def test_pareto_front(tmp_path):
    rows = rows_of(comparison_of(write_race(tmp_path)))
    # gemm costs more than 32 tables and is worse
    assert {label for label, row in rows.items() if row.flops_front} == {
        "none",
        "lookup, num_tables 16",
        "lookup, num_tables 32",
    }
    assert all(row.cpu_front is None and row.cpu_us is None for row in rows.values())


def test_equals_share_the_front(tmp_path):
    for lr in (0.1, 0.2):
        write_run(tmp_path / str(lr), lr=lr, loss=4.0)
    assert all(row.flops_front for row in comparison_of(tmp_path).rows)


def test_cpu_times_have_a_front_of_their_own(tmp_path):
    write_race(tmp_path / "runs")
    latency = write_latency(
        tmp_path / "latency.json",
        {"ffn": "gemm", "ffn_options": {"intermediate_size": 512, "hidden_act": "gelu"}, "us_per_token": 1, "ratio": 1},
        {"ffn": "lookup", "ffn_options": {"num_tables": 32, "block_size": None}, "us_per_token": 2, "ratio": 0.5},
    )
    comparison = comparison_of(tmp_path / "runs", measured=read_times(latency))
    rows = rows_of(comparison)
    assert rows["gemm"].cpu_front and rows["lookup, num_tables 32"].cpu_front
    assert (rows["lookup, num_tables 32"].cpu_us, rows["lookup, num_tables 32"].cpu_ratio) == (2, 0.5)
    assert rows["none"].cpu_us is None and rows["none"].cpu_front is None
    assert comparison.latency == "a machine, 2 threads, 4,096 tokens a call"


def test_the_reference_is_the_best_gemm_of_the_models_own_size(tmp_path):
    write_gemm(tmp_path / "wide", size=2048, loss=3.0)
    write_gemm(tmp_path / "good", lr=0.1, loss=4.0)
    write_gemm(tmp_path / "bad", lr=0.2, loss=4.5)
    write_run(tmp_path / "none", "none", loss=5.0, flops=0)
    comparison = comparison_of(tmp_path)
    assert comparison.gemm.label == "gemm, intermediate_size 512, lr 0.1"
    assert rows_of(comparison)["gemm, intermediate_size 2048, lr 0.004"].share == pytest.approx(2.0)


def test_no_share_without_both_references_or_without_a_gain(tmp_path):
    write_run(tmp_path / "a" / "none", "none", loss=4.0, flops=0)
    write_run(tmp_path / "a" / "lookup")
    assert all(row.share is None for row in comparison_of(tmp_path / "a").rows)
    write_gemm(tmp_path / "a" / "gemm", loss=4.1)
    assert all(row.share is None for row in comparison_of(tmp_path / "a").rows)


def write_seeds(folder, name, losses, **values):
    for seed, loss in enumerate(losses):
        write_run(folder / f"{name}-{seed}", name, loss=loss, seed=seed, **values)


def verdict(folder, one, other):
    comparison = comparison_of(folder)
    rows = rows_of(comparison)
    return comparison.verdict(rows[one], rows[other])


def test_verdicts_need_an_interval_without_zero(tmp_path):
    write_seeds(tmp_path, "a", [4.0, 4.2, 4.4])
    write_seeds(tmp_path, "b", [4.02, 4.23, 4.425])
    write_seeds(tmp_path, "c", [4.1, 4.1, 4.45])
    assert verdict(tmp_path, "a", "b") == BETTER and verdict(tmp_path, "b", "a") == WORSE
    assert verdict(tmp_path, "a", "c") == TIE
    # 0.2 apart in the mean, and nobody knows how much a seed makes
    write_seeds(tmp_path, "d", [4.0])
    assert verdict(tmp_path, "d", "a") == UNKNOWN and verdict(tmp_path, "a", "d") == UNKNOWN


@pytest.mark.parametrize("exit_step", [501, None])
def test_no_verdict_before_both_are_past_the_plateau(tmp_path, exit_step):
    write_seeds(tmp_path, "a", [4.0, 4.01])
    write_seeds(tmp_path, "b", [5.0, 5.01])
    write_seeds(tmp_path, "late", [6.0, 6.01], exit_step=exit_step)
    assert verdict(tmp_path, "late", "a") == EARLY and verdict(tmp_path, "a", "late") == EARLY
    # the late one does not keep the others from being read
    assert verdict(tmp_path, "a", "b") == BETTER


def test_no_verdict_before_the_second_fall_is_half_of_the_run_away(tmp_path):
    write_seeds(tmp_path, "a", [4.0, 4.01])
    write_seeds(tmp_path, "early", [5.0, 5.01], second_fall_step=750)
    write_seeds(tmp_path, "late", [6.0, 6.01], second_fall_step=751)
    assert verdict(tmp_path, "a", "early") == BETTER and verdict(tmp_path, "a", "late") == EARLY


def test_training_losses_are_compared_as_validation_losses_are(tmp_path):
    for seed, (own, gemm) in enumerate(((3.0, 3.1), (3.2, 3.35))):
        write_run(tmp_path / f"lookup-{seed}", seed=seed, training_loss=own)
        write_gemm(tmp_path / f"gemm-{seed}", seed=seed, training_loss=gemm)
    comparison = comparison_of(tmp_path)
    rows = rows_of(comparison)
    assert rows["lookup"].training_loss.mean == pytest.approx(3.1)
    assert comparison.training_difference(rows["lookup"], rows["gemm"]).mean == pytest.approx(-0.125)


def test_runs_that_fell_off_are_counted_and_named(tmp_path):
    for seed, halfway in enumerate((4.5, 4.55, 4.71)):
        write_run(tmp_path / str(seed), seed=seed, steps=2000, halfway=halfway)
    write_gemm(tmp_path / "gemm", steps=2000)
    comparison = comparison_of(tmp_path)
    rows = rows_of(comparison)
    assert [run.seed for run in rows["lookup"].fallen_off] == [2] and rows["gemm"].fallen_off is None
    (warning,) = comparison.warnings
    assert warning.startswith("1 of 3 runs fell off") and "lookup (seed 2)" in warning


def test_the_second_fall_is_that_of_the_slowest_seed(tmp_path):
    for seed, step in enumerate((500, 750)):
        write_run(tmp_path / str(seed), seed=seed, second_fall_step=step)
    write_gemm(tmp_path / "gemm")
    rows = rows_of(comparison_of(tmp_path))
    assert (rows["lookup"].second_fall_step, rows["lookup"].second_fall_tokens) == (750, 750 * 4096)
    assert rows["gemm"].second_fall_step is None


def test_a_race_is_not_read_before_three_slowest_exits(tmp_path):
    write_run(tmp_path / "a", "quick", exit_step=250)
    write_run(tmp_path / "b", "slow", exit_step=500)
    assert comparison_of(tmp_path).horizon == 3 and not comparison_of(tmp_path).warnings
    write_run(tmp_path / "c", "slower", exit_step=501)
    (warning,) = comparison_of(tmp_path).warnings
    assert "6,144,000 tokens" in warning and "slower, seed 0, step 501" in warning
    write_run(tmp_path / "d", "stuck", exit_step=None)
    comparison = comparison_of(tmp_path)
    assert comparison.horizon is None and "stuck (seed 0) never left" in comparison.warnings[0]


def test_new_keys_are_blank_where_runs_are_older(tmp_path):
    write_run(tmp_path / "old", "old")
    write_run(tmp_path / "a", "new", ffn_parameters_touched=10, parameters_touched=20, statistics={"x": 1.0, "y": 2.0})
    write_run(tmp_path / "b", "new", seed=1, ffn_parameters_touched=10, statistics={"x": 2.0, "y": None})
    rows = rows_of(comparison_of(tmp_path))
    assert rows["old"].ffn_parameters_touched is None and rows["old"].statistics == {}
    assert rows["new"].ffn_parameters_touched == 10 and rows["new"].parameters_touched is None
    assert rows["new"].statistics == {"x": 1.5}
