"""What makes a saved folder usable by others: a model card, and a way to its classes without importing them first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

LICENCE = "apache-2.0"
INSTALL = "clone the repository of lookupffn and run `pip install .` in it"
# transformers imports this file for a user who says trust_remote_code=True, and no other
RELAY = "lookupffn_classes"
RELAY_TEXT = f'''"""Hands transformers the classes of this model, which are in the package lookupffn."""

try:
    from lookupffn import *  # noqa: F403
except ImportError as error:
    raise ImportError("this model needs the package lookupffn: {INSTALL}, then load it again") from error
'''
# of summary.json, and what it is called in the card
_RESULTS = {
    "validation_perplexity": "validation perplexity",
    "unigram_perplexity": "perplexity of the training text's word frequencies",
    "validation_loss": "validation loss (nats)",
    "validation_accuracy": "validation accuracy",
    "validation_f1": "validation F1",
    "validation_matthews": "validation Matthews correlation",
    "validation_pearson": "validation Pearson correlation",
    "validation_spearman": "validation Spearman correlation",
}
_COSTS = {
    "model_flops_per_token": "FLOPs a token, whole model",
    "ffn_flops_per_token": "FLOPs a token, feed-forwards",
    "gemm_ffn_flops_per_token": "FLOPs a token, GEMM feed-forwards in their place",
    "parameters": "parameters",
    "parameters_touched": "parameters that one token reads",
    "training_flops": "FLOPs of training",
}


def auto_map(classes: Mapping[str, str]) -> dict[str, str]:
    """config.json's ``auto_map``: where transformers finds each Auto class's class."""
    return {auto: f"{RELAY}.{name}" for auto, name in classes.items()}


def model_card(summary: Mapping[str, Any]) -> str:
    """The README.md of a run's model folder.

    Args:
        summary: the run's summary.json.

    Returns:
        Markdown with the metadata that the Hugging Face hub reads.
    """
    classifies = "task" in summary
    task = "text-classification" if classifies else "fill-mask"
    auto = "AutoModelForSequenceClassification" if classifies else "AutoModelForMaskedLM"
    learned = summary["task"] if classifies else summary["data"]
    name = f"{summary['ffn']}-{summary['model']}-{learned}"
    results = {key: summary[key] for key in _RESULTS if _is_number(summary.get(key))}
    costs = {key: summary[key] for key in _COSTS if _is_number(summary.get(key))}
    start = f"fine-tuned on `{learned}`" if classifies else f"pretrained from scratch on `{learned}`"
    options = ", ".join(f"{key} {value}" for key, value in summary.get("ffn_options", {}).items())
    card = f"""---
{_metadata(summary, name, task, str(learned)).to_yaml()}
---

# {name}

A pre-norm RoBERTa (`{summary["model"]}`) whose feed-forward is `{summary["ffn"]}` ({options or "no options"}), {start}
for {summary["steps"]:,} steps ({round(summary["tokens"]):,} tokens), seed {summary["seed"]}.

## Results

{_table(results, _RESULTS)}

## Cost

{_table(costs, _COSTS)}

A multiply and an add are two FLOPs; figures are for inference unless they say training.
Trained in {summary["training_s"] / 60:,.0f} minutes on {summary.get("device_name") or summary.get("device", "?")}.

## Data

`{learned}`, fingerprint `{summary.get("data_fingerprint")}`; tokenizer `{summary.get("tokenizer_fingerprint")}`.

## How to load

The model's classes are in the package lookupffn: {INSTALL}.

```python
import lookupffn  # tells transformers about the classes
from transformers import {auto}, AutoTokenizer, pipeline

folder = "..."  # this folder, or its name on the hub
model = {auto}.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
run = pipeline("{task}", model=model, tokenizer=tokenizer)
```

Without the import, `trust_remote_code=True` lets transformers import the package through `{RELAY}.py`.

## Licence

Weights and code are under the Apache License 2.0. The training text has its own licence.
"""
    return ModelCard(card).content


def _metadata(summary: Mapping[str, Any], name: str, task: str, learned: str) -> ModelCardData:
    """What the hub reads of a card."""
    return ModelCardData(
        license=LICENCE,
        library_name="transformers",
        pipeline_tag=task,
        tags=["lookupffn", "roberta-prelayernorm", f"ffn:{summary['ffn']}"],
        model_name=name,
        eval_results=[
            EvalResult(
                task_type=task, dataset_type=learned, dataset_name=learned,
                metric_type=key.removeprefix("validation_"), metric_name=_RESULTS[key], metric_value=summary[key],
            )
            for key in _RESULTS if key.startswith("validation_") and _is_number(summary.get(key))
        ],
    )  # fmt: skip


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _table(values: Mapping[str, float], names: Mapping[str, str]) -> str:
    rows = [f"| {names[key]} | {_figure(value)} |" for key, value in values.items()]
    return "\n".join(["| | |", "| --- | --- |", *rows])


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
