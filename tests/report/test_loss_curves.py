import pytest

from lookupffn.report.loss_curves import fallen_off, mean_training, training_loss, validation_loss
from lookupffn.report.runs import find_runs
from tests.report.synthetic import TOKENS_PER_STEP, write_run


def runs_of(folder):
    return find_runs([folder]).runs


def test_the_training_loss_is_that_of_the_last_tenth(tmp_path):
    path = write_run(tmp_path / "run", steps=1000, training_loss=4.0) / "metrics.jsonl"
    # lines at 100, 200, ..., 1,000: the last alone is beyond 900
    lines = path.read_text().splitlines()
    lines[-1] = lines[-1].replace('"loss": 4.0', '"loss": 3.5')
    path.write_text("\n".join(lines))
    (run,) = runs_of(tmp_path)
    assert training_loss(run) == 3.5
    path.write_text("\n".join(line.replace('"loss": 3.5', '"loss": null') for line in lines))
    assert training_loss(runs_of(tmp_path)[0]) is None


def test_between_validations_the_loss_is_interpolated(tmp_path):
    write_run(tmp_path / "run", loss=3.8, steps=1500)
    (run,) = runs_of(tmp_path)
    # 5.8 at step 500, 4.8 at step 1,000
    assert validation_loss(run, 750 * TOKENS_PER_STEP) == pytest.approx(5.3)
    assert validation_loss(run, 499 * TOKENS_PER_STEP) is None


def test_runs_far_behind_their_siblings_have_fallen_off(tmp_path):
    for seed, halfway in enumerate((4.50, 4.55, 4.61, 4.66, 4.70)):
        write_run(tmp_path / str(seed), seed=seed, steps=2000, halfway=halfway)
    # medians of the others: 4.635, 4.635, 4.605, 4.58, 4.58
    assert [run.seed for run in fallen_off(runs_of(tmp_path))] == [4]
    assert fallen_off(runs_of(tmp_path)[:1]) is None
    assert fallen_off(runs_of(tmp_path)[:2]) == []


def test_the_training_curve_begins_with_the_first_line(tmp_path):
    for seed, loss in enumerate((4.0, 5.0)):
        write_run(tmp_path / str(seed), seed=seed, steps=2000, training_loss=loss)
    curve = mean_training(runs_of(tmp_path), points=4)
    # 20 lines: the first, and three means of shares of the rest
    assert curve.x[0] == 100 * TOKENS_PER_STEP and len(curve.x) == 4
    assert curve.mean == pytest.approx([4.5] * 4) and curve.std == pytest.approx([0.5**0.5] * 4)
