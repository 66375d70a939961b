import numpy as np
import pytest

from lookupffn.profiling import strategies
from lookupffn.profiling.loops import ORDERS, Way, loops
from tests.profiling.test_measure import needs_compiler


@needs_compiler
def test_gathers_of_every_kind_run():
    measured = loops()
    codes = np.random.default_rng(0).integers(0, 16, (4, 4, 24), dtype=np.int32)
    with measured.buffer(1 << 20, False) as buffer:
        for element in (4, 2, 1):
            for way in (Way(element), *(Way(element, order=order, ahead=0) for order in ORDERS), Way(level=1, ahead=3)):
                assert 0 < measured.gather(buffer, codes, way, 16, 128) < 1
        for by_columns in (False, True):
            assert measured.gather(buffer, codes, Way(threads=measured.cores, by_columns=by_columns), 16, 128) > 0
        with pytest.raises(ValueError, match="more than 2 rounds"):
            measured.gather(buffer, codes[:2], Way(), 16, 128)
        with pytest.raises(ValueError, match="too small"):
            measured.gather(buffer, codes, Way(), 1 << 16, 128)


@pytest.mark.slow
@needs_compiler
def test_every_question_has_several_answers(monkeypatch):
    monkeypatch.setattr(strategies, "_SECONDS", 0)
    monkeypatch.setattr(strategies, "by_turns", lambda ways, seconds: dict.fromkeys(ways, 0.01))
    monkeypatch.setattr(strategies, "TABLES", 4)
    results = strategies.measure_strategies()
    questions = [one.question for one in results]
    assert len(set(questions)) >= 10 and all(questions.count(q) >= 2 for q in questions if "threads" not in q)
    text = strategies.markdown(results)
    assert text.count("\n") == len(results) + 2 and "| prefetching | 4 rows ahead, L2 |" in text
