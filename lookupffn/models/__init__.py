"""A HuggingFace RoBERTa whose feed-forward is chosen by name, registered with transformers' Auto classes."""

import transformers

from lookupffn.models import heads
from lookupffn.models.configuration import AUTO_CLASSES, LookupRobertaConfig, build_model_config, fit_tokenizer
from lookupffn.models.heads import (
    LookupRobertaForMaskedLM,
    LookupRobertaForMultipleChoice,
    LookupRobertaForQuestionAnswering,
    LookupRobertaForSequenceClassification,
    LookupRobertaForTokenClassification,
)
from lookupffn.models.modeling import LookupRobertaModel
from lookupffn.models.state_dict import load_stock_weights

transformers.AutoConfig.register(LookupRobertaConfig.model_type, LookupRobertaConfig, exist_ok=True)
for _auto, _name in AUTO_CLASSES.items():
    if _auto != "AutoConfig":
        getattr(transformers, _auto).register(LookupRobertaConfig, getattr(heads, _name), exist_ok=True)

__all__ = [
    "LookupRobertaConfig",
    "LookupRobertaForMaskedLM",
    "LookupRobertaForMultipleChoice",
    "LookupRobertaForQuestionAnswering",
    "LookupRobertaForSequenceClassification",
    "LookupRobertaForTokenClassification",
    "LookupRobertaModel",
    "build_model_config",
    "fit_tokenizer",
    "load_stock_weights",
]
