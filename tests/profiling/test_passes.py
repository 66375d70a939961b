from itertools import count

import pytest

from lookupffn.profiling.passes import LEAST, in_passes, settled, value


def test_what_does_not_agree_is_measured_again():
    turns, others = count(), count()

    def disturbed():
        return {"disturbed": 100.0 if next(turns) % 4 == 0 else 50.0}

    def both():
        """The second figure is settled by the first passes, the first by the last but one."""
        return {"a": 20.0 if next(others) >= LEAST - 2 else 10.0, "b": 3.0}

    found = in_passes([lambda: {"steady": 10.0}, disturbed, both], seconds=60)
    assert found["steady"] == [10.0] * LEAST
    # three undisturbed rates and more by the tenth pass
    assert len(found["disturbed"]) == LEAST and value(found["disturbed"]) == 100.0
    assert len(found["a"]) == len(found["b"]) == LEAST + 1


def test_time_ends_what_never_agrees():
    rising = count(1)
    found = in_passes([lambda: {"rising": 2.0 ** next(rising)}], seconds=0, least=2)
    assert found == {"rising": [2.0, 4.0]} and not settled(found["rising"])


def test_the_mean_of_the_best_three():
    assert value([1.0, 9.0, 10.0, 2.0, 11.0]) == pytest.approx(10.0) and value([3.0]) == 3.0
    assert settled([10.0, 1.0, 9.6, 9.9]) and not settled([10.0, 9.9, 9.4])
