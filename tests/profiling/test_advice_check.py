from dataclasses import replace

import pytest

from lookupffn import UserError
from lookupffn.profiling import advice_check
from lookupffn.profiling.advice_check import CASES, TRIALS, Case, Choice, measure_case, outcomes, read_choices, report
from tests.profiling.synthetic import machine

SMALL = Case(64, 8, 1, 1.0, ("float32", "int8"), rows=16)


def made_up(case, microseconds):
    points = [one.point for one in case.choices(machine())]
    return [
        Choice(str(case), p.tables, p.probes, p.block, p.precision, us, 40.0 - us)
        for p, us in zip(points, microseconds, strict=False)
    ]


def test_five_cases_or_more_with_a_choice():
    assert len(CASES) >= 5 and len({str(case) for case in CASES}) == len(CASES)
    assert all(len(case.choices(machine())) >= 4 for case in CASES)


def test_what_advice_is_worth():
    """The choice predicted to be fastest takes 10.9 where the best takes 10; the trials mistake the slowest for it."""
    case = CASES[0]
    times = [10.9, 10.0, *[30.0] * (TRIALS - 2)]
    found = outcomes(made_up(case, times), machine())
    assert len(found) == 1 and found[0].choices == TRIALS
    assert found[0].excess(found[0].predicted) == pytest.approx(0.09)
    assert found[0].excess(found[0].tried) == pytest.approx(2.0)
    assert found[0].predicted.is_of(case.choices(machine())[0].point)
    text = report([found[0], replace(found[0], predicted=found[0].tried)])
    assert "1 of 2 cases by the model alone, 0 after 8 trials" in text and "| 9.0% |" in text and "| 200.0% |" in text


def test_a_choice_that_was_not_measured():
    with pytest.raises(UserError, match="measure the cases again"):
        outcomes(made_up(CASES[0], [1.0] * TRIALS)[1:], machine())


def test_every_choice_is_measured(monkeypatch):
    monkeypatch.setattr(
        advice_check, "measure_lookups", lambda points, seconds: [1e-6 * point.tables for point in points]
    )
    found = measure_case(SMALL, machine())
    assert len(found) == len(SMALL.choices(machine())) and all(one.measured_us == one.tables for one in found)


def test_files(tmp_path):
    choices = made_up(SMALL, [3.0, 4.5])
    advice_check.write_choices(tmp_path / "advice.csv", choices)
    assert read_choices(tmp_path / "advice.csv") == choices
    (tmp_path / "bad.csv").write_text("case,tables\nx,2\n")
    (tmp_path / "worse.csv").write_text((tmp_path / "advice.csv").read_text().replace("3.0", "fast"))
    for name, message in (
        ("bad.csv", "not a file of measured choices"),
        ("worse.csv", "not a file of measured choices"),
        ("absent.csv", "cannot read"),
    ):
        with pytest.raises(UserError, match=message):
            read_choices(tmp_path / name)
