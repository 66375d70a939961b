"""LookupFFN: RoBERTa pretraining with a choice of feed-forward, table lookup or matrix product."""

import lookupffn.inference  # noqa: F401 model.optimize_for_inference
from lookupffn.errors import UserError
from lookupffn.layers import build_ffn
from lookupffn.models import (
    LookupRobertaConfig,
    LookupRobertaForMaskedLM,
    LookupRobertaForMultipleChoice,
    LookupRobertaForQuestionAnswering,
    LookupRobertaForSequenceClassification,
    LookupRobertaForTokenClassification,
    LookupRobertaModel,
)

__all__ = [
    "LookupRobertaConfig",
    "LookupRobertaForMaskedLM",
    "LookupRobertaForMultipleChoice",
    "LookupRobertaForQuestionAnswering",
    "LookupRobertaForSequenceClassification",
    "LookupRobertaForTokenClassification",
    "LookupRobertaModel",
    "UserError",
    "build_ffn",
]
