from itertools import count

import pytest

from lookupffn import UserError
from lookupffn.profiling import system
from lookupffn.profiling.passes import LEAST, in_passes, settled, value


@pytest.fixture(autouse=True)
def nothing_else(monkeypatch):
    """No other work in the passes to come but for the given shares."""
    shares = []

    class OtherWork:
        share = 0.0

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.share = shares.pop(0) if shares else 0.0

    monkeypatch.setattr(system, "OtherWork", OtherWork)
    return shares


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


def test_passes_that_other_work_disturbed_do_not_count(nothing_else):
    nothing_else += [0.5, 0.0, 0.2]
    assert len(in_passes([lambda: {"a": 1.0}], seconds=60, least=3)["a"]) == 5


def test_too_many_disturbed_passes_are_one_line(nothing_else):
    nothing_else += [0.5] * 2
    with pytest.raises(UserError, match="other work disturbed 2 of 2 passes"):
        in_passes([lambda: {"a": 1.0}], seconds=0, least=2, strict=True)


def test_time_ends_what_never_agrees():
    rising = count(1)
    found = in_passes([lambda: {"rising": 2.0 ** next(rising)}], seconds=0, least=2)
    assert found == {"rising": [2.0, 4.0]} and not settled(found["rising"])


def test_the_mean_of_the_best_three():
    assert value([1.0, 9.0, 10.0, 2.0, 11.0]) == pytest.approx(10.0) and value([3.0]) == 3.0
    assert settled([10.0, 1.0, 9.6, 9.9]) and not settled([10.0, 9.9, 9.4])
