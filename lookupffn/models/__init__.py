"""A HuggingFace RoBERTa whose feed-forward is chosen by name, registered with transformers' Auto classes."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from lookupffn.models.configuration import LookupRobertaConfig, build_model_config
from lookupffn.models.modeling import (
    LookupRobertaForMaskedLM,
    LookupRobertaForSequenceClassification,
    LookupRobertaForTokenClassification,
    LookupRobertaModel,
    attach_optimizer,
    load_stock_weights,
)

AutoConfig.register(LookupRobertaConfig.model_type, LookupRobertaConfig, exist_ok=True)
for _auto, _cls in (
    (AutoModel, LookupRobertaModel),
    (AutoModelForMaskedLM, LookupRobertaForMaskedLM),
    (AutoModelForSequenceClassification, LookupRobertaForSequenceClassification),
    (AutoModelForTokenClassification, LookupRobertaForTokenClassification),
):
    _auto.register(LookupRobertaConfig, _cls, exist_ok=True)

__all__ = [
    "LookupRobertaConfig",
    "LookupRobertaForMaskedLM",
    "LookupRobertaForSequenceClassification",
    "LookupRobertaForTokenClassification",
    "LookupRobertaModel",
    "attach_optimizer",
    "build_model_config",
    "load_stock_weights",
]
