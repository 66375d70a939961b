import csv
import io

import pytest

from lookupffn.report.compare import compare_runs, read_report, tables
from tests.report.synthetic import write_gemm, write_run

STEPS = (1000, 2000, 4000)


def write_ladder(folder, losses, *, steps=STEPS):
    """gemm at 4.0, 3.5 and 3.2 over three seeds; lookup at ``losses``, which are relative to gemm's, by horizon."""
    for horizon, (step, gemm) in enumerate(zip(steps, (4.0, 3.5, 3.2), strict=False)):
        for seed, off in enumerate((-0.1, 0.0, 0.1)):
            place = folder / f"{step}-{seed}"
            write_gemm(place / "gemm", loss=gemm + off, seed=seed, steps=step, exit_step=100)
            loss = gemm + off + losses[horizon][seed]
            write_run(place / "lookup", loss=loss, seed=seed, steps=step, exit_step=100)


def ladder_of(folder):
    (ladder,) = read_report([folder]).ladders
    return ladder


def test_below_at_every_horizon_is_every_upper_bound_below_zero(tmp_path):
    write_ladder(tmp_path, [(-0.02, -0.03, -0.025)] * 3)
    gemm, lookup = ladder_of(tmp_path).climbs
    assert (gemm.label, lookup.label) == ("gemm", "lookup") and gemm.everywhere is None
    assert lookup.everywhere is True
    # mean -0.025, standard deviation 0.005, t = 8.66025: p = 1 - t / sqrt(t^2 + 2) = 0.0130723, three times
    assert [step.against.p for step in lookup.steps] == pytest.approx([0.0130723] * 3, abs=1e-6)
    assert [step.p for step in lookup.steps] == pytest.approx([0.0392169] * 3, abs=1e-6)
    assert [step.verdict for step in lookup.steps] == ["better"] * 3


def test_a_bound_above_zero_at_one_horizon_is_enough(tmp_path):
    write_ladder(tmp_path, [(-0.02, -0.03, -0.025), (-0.02, -0.03, -0.025), (-0.02, 0.01, -0.01)])
    lookup = ladder_of(tmp_path).climbs[1]
    assert lookup.everywhere is False and lookup.steps[2].verdict == "tie"


def test_what_is_better_alone_may_be_a_tie_among_several(tmp_path):
    # p = 0.0198 alone
    write_ladder(tmp_path, [(-0.02, -0.03, -0.022), (-0.06, 0.05, 0.0), (0.05, -0.06, 0.0)])
    steps = ladder_of(tmp_path).climbs[1].steps
    assert steps[0].against.high < 0 and steps[0].against.p == pytest.approx(0.0157, abs=1e-3)
    assert steps[0].p == pytest.approx(3 * steps[0].against.p) and steps[0].verdict == "better"
    write_ladder(tmp_path / "b", [(-0.02, -0.03, -0.017), (-0.06, 0.05, 0.0), (0.05, -0.06, 0.0)])
    first = ladder_of(tmp_path / "b").climbs[1].steps[0]
    assert first.against.high < 0 and first.p > 0.05 and first.verdict == "tie"


def test_curves_are_fitted_from_three_horizons_on_and_cross(tmp_path):
    write_ladder(tmp_path / "two", [(-0.02, -0.03, -0.025)] * 2, steps=STEPS[:2])
    assert all(climb.law is None for climb in ladder_of(tmp_path / "two").climbs)
    # lookup is ahead by 0.1, then level, then behind by 0.05
    write_ladder(tmp_path / "three", [(-0.1, -0.11, -0.1), (0.0, 0.01, 0.0), (0.05, 0.05, 0.06)])
    gemm, lookup = ladder_of(tmp_path / "three").climbs
    assert gemm.law.loss(4_096_000) == pytest.approx(4.0, abs=1e-3) and gemm.crossing is None
    assert lookup.crossing.tokens == pytest.approx(2000 * 4096, rel=0.1) and not lookup.crossing.ahead
    assert lookup.crossing.low <= lookup.crossing.tokens <= lookup.crossing.high


@pytest.mark.slow
def test_horizons_are_written_and_drawn(tmp_path):
    write_ladder(tmp_path / "runs", [(-0.02, -0.03, -0.025)] * 3)
    text = compare_runs([tmp_path / "runs"], tmp_path / "out")
    assert f"horizons together: {tmp_path / 'out' / 'horizons'}" in text
    assert {path.name for path in (tmp_path / "out" / "horizons").iterdir()} == {
        "table.md", "table.csv", "losses.png", "losses.svg", "losses.pdf",
    }  # fmt: skip
    written = tables(read_report([tmp_path / "runs"]))
    assert "| lookup | 3.9750 | -0.0250 | -0.0374 to -0.0126 | 0.039 | better |" in written["horizons/table.md"]
    rows = list(csv.DictReader(io.StringIO(written["horizons/table.csv"])))
    assert len(rows) == 6 and rows[3]["below_gemm_at_every_horizon"] == "True" and float(rows[3]["E"]) > 0


def test_other_text_is_no_further_horizon(tmp_path):
    write_run(tmp_path / "a", steps=1000)
    write_run(tmp_path / "b", steps=2000, data_fingerprint="c" * 32)
    assert read_report([tmp_path]).ladders == ()
