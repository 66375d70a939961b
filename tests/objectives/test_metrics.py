"""Each metric against a value worked out by hand."""

import math

import numpy as np
import pytest

from lookupffn.objectives.metrics import compute_metrics, glue_score, task_score

# of class 1: 2 true and 1 false positives, 1 false negative; 1 true negative
PREDICTED, LABELS = np.array([1, 1, 1, 0, 0]), np.array([1, 1, 0, 1, 0])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("accuracy", 3 / 5),
        ("f1", 2 * 2 / (2 * 2 + 1 + 1)),
        ("matthews", (2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2)),
    ],
)
def test_classes(name, value):
    assert compute_metrics([name], PREDICTED, LABELS)[name] == pytest.approx(value, abs=1e-12)


def test_f1_of_three_classes_is_the_mean_over_classes():
    found = compute_metrics(["f1"], np.array([0, 1, 2, 2]), np.array([0, 1, 1, 2]))["f1"]
    assert found == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)


def test_correlations():
    # deviations: x -1.5 -0.5 0.5 1.5, y -2 -1 -1 4 (mean 2): covariance 10, squares 5 and 22
    x, y = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 1.0, 1.0, 6.0])
    found = compute_metrics(["pearson", "spearman"], x, y)
    assert found["pearson"] == pytest.approx(9.0 / math.sqrt(5 * 22), abs=1e-12)
    # ranks of y 1, 2.5, 2.5, 4: covariance 4.5, squares 5 and 4.5
    assert found["spearman"] == pytest.approx(4.5 / math.sqrt(5 * 4.5), abs=1e-12)


def test_a_constant_correlates_with_nothing():
    assert math.isnan(compute_metrics(["pearson"], np.ones(3), np.arange(3.0))["pearson"])


def test_glue_average():
    tasks = {"mrpc": {"accuracy": 0.8, "f1": 0.9}, "cola": {"matthews": 0.5}, "mnli": {"m": 0.7, "mm": 0.72}}
    assert task_score(tasks["mrpc"]) == pytest.approx(0.85)
    assert glue_score(tasks) == pytest.approx(100 * (0.85 + 0.5 + 0.71) / 3)
