"""A HuggingFace RoBERTa whose feed-forward is chosen by name, registered with transformers' Auto classes."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from lookupffn.models.configuration import LookupRobertaConfig, build_model_config
from lookupffn.models.heads import (
    LookupRobertaForMaskedLM,
    LookupRobertaForMultipleChoice,
    LookupRobertaForQuestionAnswering,
    LookupRobertaForSequenceClassification,
    LookupRobertaForTokenClassification,
)
from lookupffn.models.modeling import LookupRobertaModel, attach_optimizer
from lookupffn.models.state_dict import load_stock_weights

AutoConfig.register(LookupRobertaConfig.model_type, LookupRobertaConfig, exist_ok=True)
for _auto, _cls in (
    (AutoModel, LookupRobertaModel),
    (AutoModelForMaskedLM, LookupRobertaForMaskedLM),
    (AutoModelForMultipleChoice, LookupRobertaForMultipleChoice),
    (AutoModelForQuestionAnswering, LookupRobertaForQuestionAnswering),
    (AutoModelForSequenceClassification, LookupRobertaForSequenceClassification),
    (AutoModelForTokenClassification, LookupRobertaForTokenClassification),
):
    _auto.register(LookupRobertaConfig, _cls, exist_ok=True)

__all__ = [
    "LookupRobertaConfig",
    "LookupRobertaForMaskedLM",
    "LookupRobertaForMultipleChoice",
    "LookupRobertaForQuestionAnswering",
    "LookupRobertaForSequenceClassification",
    "LookupRobertaForTokenClassification",
    "LookupRobertaModel",
    "attach_optimizer",
    "build_model_config",
    "load_stock_weights",
]
