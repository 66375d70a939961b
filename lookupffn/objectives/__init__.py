"""Objectives, one a file: the data, the model, the loss, the score, and the bar to beat."""

from lookupffn.objectives.base import EvaluationStopped, Objective
from lookupffn.objectives.classification import SequenceClassification
from lookupffn.objectives.mlm import MaskedLanguageModelling

__all__ = ["EvaluationStopped", "MaskedLanguageModelling", "Objective", "SequenceClassification"]
