"""How long a sweep goes on."""

import json
import logging
from pathlib import Path

import pytest

from lookupffn.cli.progress import ENDED, RUNNING, Watch, noting_progress, read_notes, seconds_left, seconds_of, spoken


def note(step: int, *, first: int = 0, began: float = 0.0, since: float = 10.0, seen: float) -> dict:
    return {
        "pid": 1, "began": began, "seen": seen, "first": first, "step": step, "steps": 100, "stepping_since": since
    }  # fmt: skip


def test_a_member_is_as_long_as_its_steps_say():
    assert seconds_of(note(50, seen=60.0)) == 110.0  # 10 s to start, a second a step
    assert seconds_of(note(90, first=50, seen=50.0)) == 110.0  # resumed
    assert seconds_of(note(20, seen=30.0)) is None  # too early to tell
    assert seconds_of({"began": 0.0, "seen": 1.0}) is None  # finished before: skipped


def test_what_is_left():
    skipped = {"began": 0.0, "seen": 0.5}
    assert seconds_left(4, {0: note(5, seen=15.0)}, {}, 2) is None
    running = {1: note(50, seen=60.0), 2: note(50, seen=60.0)}
    # twice 50 s of these and 110 s of the last, on two cores; the skipped one does not count as a fast one
    assert seconds_left(4, running, {0: skipped}, 2) == pytest.approx(105.0)
    assert seconds_left(4, running, {0: skipped}, 1) == pytest.approx(210.0)
    assert seconds_left(3, running, {0: skipped}, 2) == pytest.approx(50.0)


@pytest.mark.parametrize(("seconds", "text"), [(0, "1 s"), (40, "40 s"), (300, "5 min"), (4200, "1 h 10 min")])
def test_spoken(seconds: float, text: str):
    assert spoken(seconds) == text


def test_notes_and_the_line_that_is_made_of_them(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with noting_progress(tmp_path / "000000", None):
        assert list(read_notes(tmp_path, RUNNING)) == [0] and not read_notes(tmp_path, ENDED)
    assert list(read_notes(tmp_path, ENDED)) == [0] and not read_notes(tmp_path, RUNNING)
    (tmp_path / "000001.running").write_text(json.dumps(note(50, seen=60.0)))
    with caplog.at_level(logging.INFO):
        Watch(tmp_path, 2, 1).look()
    assert caplog.messages == ["1 of 2 members done; member 2 at step 50 of 100; about 50 s left"]
