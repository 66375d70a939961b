"""Scores of classification and regression as GLUE defines them (Wang et al., arXiv 1804.07461, section 3)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np

METRICS = ("accuracy", "f1", "matthews", "pearson", "spearman")


def compute_metrics(names: Sequence[str], predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The named metrics.

    Args:
        names: of ``METRICS``.
        predictions: class numbers or scores, [N].
        labels: likewise, [N].

    Returns:
        Name to value: accuracy and F1 from 0 to 1 (F1 of class 1 of two, the mean over classes of more), the
        correlations from -1 to 1; NaN for a correlation with a constant, which is undefined.
    """
    return {name: _metric(name, predictions, labels) for name in names}


def _metric(name: str, predictions: np.ndarray, labels: np.ndarray) -> float:
    from scipy import stats
    from sklearn import metrics

    if name == "accuracy":
        return float(metrics.accuracy_score(labels, predictions))
    if name == "f1":
        binary = set(np.unique(labels)) | set(np.unique(predictions)) <= {0, 1}
        return float(metrics.f1_score(labels, predictions, average="binary" if binary else "macro", zero_division=0))
    if name == "matthews":
        return float(metrics.matthews_corrcoef(labels, predictions))
    if name in ("pearson", "spearman"):
        correlation = stats.pearsonr if name == "pearson" else stats.spearmanr
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.ConstantInputWarning)
            return float(correlation(predictions, labels)[0])
    raise ValueError(f"unknown metric {name!r}")


def task_score(metrics: Mapping[str, float]) -> float:
    """A task's one number in GLUE: the mean of its metrics, also of MNLI's two validation splits."""
    return sum(metrics.values()) / len(metrics)


def glue_score(tasks: Mapping[str, Mapping[str, float]]) -> float:
    """GLUE's average: the mean over tasks of ``task_score``, times 100.

    Args:
        tasks: of each task its metrics, by name.
    """
    return 100 * sum(map(task_score, tasks.values())) / len(tasks)
