"""LookupFFN: RoBERTa pretraining with a choice of feed-forward, table lookup or matrix product."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lookupffn.errors import UserError
from lookupffn.plugins import register_models

if TYPE_CHECKING:
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


def __getattr__(name: str) -> Any:
    """What needs torch, imported when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    room = "lookupffn.layers" if name == "build_ffn" else "lookupffn.models"
    return getattr(importlib.import_module(room), name)


register_models()
