import math

import pytest

from lookupffn.report.significance import BETTER, EARLY, TIE, UNKNOWN, WORSE, Difference, difference, holm, spread


def test_paired_differences_have_students_interval():
    # differences -0.022, -0.045, +0.030: mean -0.012333, standard deviation 0.038423; t(0.975, 2) is 4.30265
    found = difference({0: 3.980, 1: 3.894, 2: 3.958, 7: 9.0}, {2: 3.928, 1: 3.939, 0: 4.002, 5: 1.0})
    assert found.pairs == 3 and found.mean == pytest.approx(-0.0123333, abs=1e-6)
    half = 4.30265 * 0.0384231 / math.sqrt(3)
    assert (found.low, found.high) == pytest.approx((-0.0123333 - half, -0.0123333 + half), abs=1e-5)
    # with two degrees of freedom, p is 1 - t / sqrt(2 + t^2)
    t = 0.0123333 / (0.0384231 / math.sqrt(3))
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t * t), abs=1e-5)
    assert found.verdict() == TIE


def test_pairing_sees_what_the_spread_over_seeds_hides():
    # seeds are 0.4 apart, and one is always 0.02 to 0.03 below the other
    found = difference({0: 3.98, 1: 4.17, 2: 4.375}, {0: 4.0, 1: 4.2, 2: 4.4})
    assert found.verdict() == BETTER and found.verdict(lower_is_better=False) == WORSE
    assert difference({0: 4.0, 1: 4.2, 2: 4.4}, {0: 3.98, 1: 4.17, 2: 4.375}).verdict() == WORSE


def test_other_seeds_are_compared_by_welchs_test():
    # variances 0.5 and 0.5 of two each: standard error sqrt(0.5), 2 degrees of freedom
    found = difference({0: 1.0, 1: 2.0}, {3: 0.0, 4: 1.0})
    assert found.pairs == 0 and found.mean == 1.0
    assert found.high == pytest.approx(1 + 4.30265 * math.sqrt(0.5), abs=1e-4)


def test_no_verdict_from_a_single_seed_or_too_early():
    one = difference({0: 1.0}, {0: 2.0, 1: 2.1})
    assert (one.low, one.high, one.p) == (None, None, None) and one.mean == pytest.approx(-1.05)
    assert one.verdict() == UNKNOWN and one.verdict(early=True) == UNKNOWN
    assert difference({0: 1.0, 1: 1.1}, {0: 2.0, 1: 2.1}).verdict(early=True) == EARLY


def test_differences_without_any_spread():
    assert difference({0: 1.0, 1: 2.0}, {0: 0.0, 1: 1.0}) == Difference(1.0, 1.0, 1.0, 0.0, 2)
    same = difference({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0})
    assert same.p == 1.0 and same.verdict() == TIE


def test_holm_by_hand():
    # sorted 0.01, 0.03, 0.04 times 3, 2, 1, and never below the one before
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_spread():
    assert spread([1.0]).std is None
    assert spread([1.0, 3.0]).std == pytest.approx(math.sqrt(2))
