import math

import pytest

from lookupffn.report.figures import BETTER, TIE, UNKNOWN, WORSE, compare, pooled_std
from lookupffn.report.groups import comparable_groups
from lookupffn.report.latency import read_latencies
from lookupffn.report.runs import find_runs
from tests.report.synthetic import write_gemm, write_latency, write_race, write_run


def comparison_of(folder, **options):
    (group,), _ = comparable_groups(find_runs([folder])[0])
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
    comparison = comparison_of(tmp_path / "runs", latencies=read_latencies(latency))
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


def verdicts(folder, one, other):
    comparison = comparison_of(folder)
    rows = rows_of(comparison)
    return comparison.difference(rows[one], rows[other])


def test_a_difference_within_the_pooled_spread_is_a_tie(tmp_path):
    write_seeds(tmp_path, "a", [4.0, 4.02])
    write_seeds(tmp_path, "b", [4.01, 4.05, 4.03])
    write_seeds(tmp_path, "c", [4.2, 4.22])
    noise = pooled_std([[4.0, 4.02], [4.01, 4.05, 4.03]])
    assert noise == pytest.approx(math.sqrt((0.0002 + 2 * 0.0004) / 3))
    found = verdicts(tmp_path, "a", "b")
    # 0.02 apart, and 0.018 of noise
    assert found.nats == pytest.approx(-0.02) and found.spread == pytest.approx(noise) and found.verdict == BETTER
    assert verdicts(tmp_path, "b", "a").verdict == WORSE
    assert verdicts(tmp_path, "c", "a").verdict == WORSE
    write_seeds(tmp_path, "d", [4.01, 4.03])
    assert verdicts(tmp_path, "a", "d").verdict == TIE


def test_a_single_seed_borrows_the_spread_of_the_group(tmp_path):
    write_seeds(tmp_path, "a", [4.0])
    write_seeds(tmp_path, "b", [4.05])
    assert verdicts(tmp_path, "a", "b").verdict == UNKNOWN and verdicts(tmp_path, "a", "b").spread is None
    write_seeds(tmp_path, "c", [5.0, 5.02])
    write_seeds(tmp_path, "d", [5.0, 5.1])
    found = verdicts(tmp_path, "a", "b")
    assert found.spread == pytest.approx(math.sqrt((0.0002 + 0.005) / 2)) and found.verdict == TIE
    # one of the two alone having seeds is not enough for a pool of their own
    assert verdicts(tmp_path, "a", "c").spread == pytest.approx(found.spread)


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
