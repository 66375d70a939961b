import numpy as np
import pytest

from lookupffn.report.power_law import crossing, fit

HORIZONS = [1e6, 4e6, 16e6]


def slow(tokens):
    """2 + 4 / sqrt(millions of tokens)."""
    return 2 + 4 * (tokens / 1e6) ** -0.5


def quick(tokens):
    """2.2 + 2 / sqrt(millions of tokens): the lower one until 100 million."""
    return 2.2 + 2 * (tokens / 1e6) ** -0.5


def test_a_power_law_is_found_again():
    law = fit(HORIZONS, [slow(tokens) for tokens in HORIZONS])
    assert law.floor == pytest.approx(2, abs=1e-5) and law.beta == pytest.approx(0.5, abs=1e-5)
    assert law.scale * law.unit**law.beta == pytest.approx(4 * 1e6**0.5, rel=1e-4)
    assert law.loss(64e6) == pytest.approx(2.5, abs=1e-5)


def test_the_floor_is_not_negative():
    # a straight line down in the logarithm of tokens, which no positive floor fits
    law = fit([1e6, 1e7, 1e8], [3.0, 2.0, 1.0])
    assert law.floor == 0 and law.beta > 0


def test_two_curves_cross_where_they_are_equal():
    tokens = np.array(HORIZONS)
    noise = np.array([-0.02, 0.01, 0.0, 0.01, 0.0])
    found = crossing(HORIZONS, slow(tokens)[:, None] + noise, quick(tokens)[:, None] + noise / 2)
    assert found.tokens == pytest.approx(100e6, rel=0.01)
    assert found.low < 100e6 < found.high < 200e6 and found.share == 1
    assert found.ahead and found.ahead_share == 1
    # the same seeds' noise on both sides moves them together
    together = crossing(HORIZONS, slow(tokens)[:, None] + noise, quick(tokens)[:, None] + noise)
    assert together.high - together.low < 0.05 * (found.high - found.low)


def test_curves_that_do_not_cross():
    tokens = np.array(HORIZONS)
    found = crossing(HORIZONS, slow(tokens)[:, None] + [0.1, 0.12], slow(tokens)[:, None] + [0.0, 0.01])
    assert found.tokens is None and found.low is None and found.share == 0 and not found.ahead
