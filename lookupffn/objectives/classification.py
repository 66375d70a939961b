"""Sequence classification and regression: fine-tuning on labelled sentences or pairs of them.

One protocol for every feed-forward and every task: the hyperparameters of configs/finetune.yaml, and the score of the
last step, never that of the best one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from lookupffn import cost, storage
from lookupffn.data.corpus.base import Corpus
from lookupffn.data.labelled import Examples, LabelledData, load_task
from lookupffn.data.labelled.batches import Encoded, LabelledBatch, TrainingOrder
from lookupffn.data.tokenizer import make_tokenizer, tokenizer_fingerprint
from lookupffn.distributed.processes import sum_over
from lookupffn.layers import FeedForward
from lookupffn.models import LookupRobertaConfig, LookupRobertaForSequenceClassification, fit_tokenizer
from lookupffn.models.loading import check_vocabulary, load_model
from lookupffn.objectives.base import EvaluationStopped, Objective, full_precision, model_costs
from lookupffn.objectives.metrics import compute_metrics
from lookupffn.objectives.model_config import check_tokenizer, own_tokenizer
from lookupffn.runs.model_source import ModelSource
from lookupffn.storage import cache_root

# a folder without a run does not say what lengths it was trained on; BERT's short phase is a safe guess
ASSUMED_LENGTH = 128

logger = logging.getLogger(__name__)


class SequenceClassification(Objective):
    """Predict the label of a sentence or a pair; the bar is the most frequent class, or the mean of the scores."""

    name = "sequence classification"
    sections = ("ffn", "model", "task", "tokenizer", "evaluation")

    @classmethod
    def adopt(cls, values: dict[str, Any]) -> ModelSource | None:
        """See ``Objective``; the length of sequences is that of pretraining too."""
        source = super().adopt(values)
        if source is not None:
            pretraining = (source.run_config or {}).get("model", {})
            longest = values["model"]["max_positions"]
            values["model"]["sequence_length"] = pretraining.get("sequence_length", min(ASSUMED_LENGTH, longest))
        return source

    def prepare(self, folder: Path) -> None:
        """See ``Objective``."""
        config, batch_size = self.config, self.config.training.batch_size
        assert config.task is not None
        self._seed, self._freeze = config.run.seed, config.task.freeze
        self._evaluation_batch = config.evaluation.batch_size
        self._length = config.task.max_length or config.model.sequence_length

        self._data = data = load_task(config.task)
        tokenizer = own_tokenizer(folder, config.tokenizer)
        self.tokenizer = make_tokenizer(tokenizer, LabelledText(data), cache_root(config.run.cache_dir))
        self._splits = {
            split: Encoded(examples, self.tokenizer, self._length, f"task {data.name}, {split} split")
            for split, examples in data.splits.items()
        }
        self._order = TrainingOrder(self._splits["train"], seed=self._seed, batch_size=batch_size)
        self.steps_per_epoch = self._order.steps_per_epoch
        self.tokens_per_step = float(self._splits["train"].lengths.mean()) * batch_size

    def fingerprints(self) -> dict[str, str]:
        """See ``Objective``."""
        return {
            "data_fingerprint": self._data.fingerprint,
            "tokenizer_fingerprint": tokenizer_fingerprint(self.tokenizer),
        }

    def build_model(self, checkpoint: Path | None) -> LookupRobertaForSequenceClassification:
        """See ``Objective``; what ``task.freeze`` names does not learn."""
        torch.manual_seed(self._seed)
        if checkpoint is not None:
            model = load_model(checkpoint, LookupRobertaForSequenceClassification)
        elif self.source is not None:
            pretrained = load_model(self.source.folder)
            check_vocabulary(self.tokenizer, pretrained.config, self.source.folder)
            check_tokenizer(self.tokenizer, self.source)
            model = LookupRobertaForSequenceClassification(self._with_labels(pretrained.config))
            model.roberta_prelayernorm.load_state_dict(pretrained.roberta_prelayernorm.state_dict())
        else:
            config = fit_tokenizer(self.model_config, self.tokenizer)
            model = LookupRobertaForSequenceClassification(self._with_labels(config))
        freeze(model, self._freeze)
        return model

    def _with_labels(self, config: LookupRobertaConfig) -> LookupRobertaConfig:
        """A model's configuration with this task's labels."""
        names = self._data.label_names
        config.problem_type = "regression" if names is None else "single_label_classification"
        config.id2label = {0: "score"} if names is None else dict(enumerate(names))
        config.label2id = {name: number for number, name in config.id2label.items()}
        return config

    def costs(self, model: LookupRobertaForSequenceClassification) -> dict[str, Any]:
        """See ``Objective``; of a token in a sentence of the training split's mean length."""
        length = float(self._splits["train"].lengths.mean())
        head = cost.classification_head(model.config.hidden_size, model.config.num_labels, length)
        return model_costs(model, cost.total([model.cost(round(length), mask_rate=0.0), head]))

    @property
    def bar(self) -> str:
        """See ``Objective``."""
        found = ", ".join(f"{name} {value:.4f}" for name, value in self._floor().items())
        return f"{found} (the same answer for every sentence)"

    def _floor(self) -> dict[str, float]:
        """Metrics of the most frequent class, or of the mean score, of the training split."""
        labels = self._data.splits["train"].labels
        answer = labels.mean() if self._data.label_names is None else np.bincount(labels).argmax()
        expected = self._data.splits["validation"].labels
        return compute_metrics(self._data.metrics[:1], np.full_like(expected, answer), expected)

    def tokens(self, steps: int) -> int:
        """See ``Objective``; padding is not counted."""
        return self._order.tokens(steps)

    def training_batches(
        self, *, start_step: int, end_step: int, rank: int, world_size: int, accumulation: int
    ) -> Iterator[list[LabelledBatch]]:
        """See ``Objective``."""
        return self._order.batches(
            start_step=start_step, end_step=end_step, rank=rank, world_size=world_size, accumulation=accumulation
        )

    def loss(self, model: nn.Module, batch: LabelledBatch, device: torch.device) -> Tensor:
        """See ``Objective``: mean cross-entropy in nats, or squared error."""
        input_ids, attention_mask, labels = (part.to(device, non_blocking=True) for part in batch[:3])
        return model(input_ids=input_ids, attention_mask=attention_mask, labels=labels).loss

    def score(
        self,
        model: LookupRobertaForSequenceClassification,
        accelerator: Accelerator,
        *,
        final: bool,
        stop: Callable[[], bool] | None = None,
    ) -> dict[str, float]:
        """See ``Objective``; "<split>_<metric>" of each metric, and validation_loss, the mean over all splits."""
        found: dict[str, float] = {}
        losses = []
        for split in self._data.validation_names:
            logits = predict(
                model, self._splits[split], self._evaluation_batch, accelerator,
                stop=stop, what=f"scoring {split}",
            )  # fmt: skip
            labels = self._splits[split].labels
            if self._data.label_names is None:
                predictions = logits[:, 0]
                losses.append(((predictions - labels) ** 2).mean())
            else:
                predictions = logits.argmax(-1)
                losses.append(nn.functional.cross_entropy(logits, labels))
            metrics = compute_metrics(self._data.metrics, predictions.numpy(), labels.numpy())
            found |= {f"{split}_{name}": value for name, value in metrics.items()}
        return {"validation_loss": float(torch.stack(losses).mean()), **found}

    def describe(self, line: dict[str, Any]) -> str:
        """See ``Objective``."""
        names = [f"{split}_{name}" for split in self._data.validation_names for name in self._data.metrics]
        return ", ".join(f"{name.replace('_', ' ')} {line[name]:.4f}" for name in names)

    def summary(self, score: dict[str, Any], lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """See ``Objective``."""
        source = self.source
        names = [f"{split}_{name}" for split in self._data.validation_names for name in self._data.metrics]
        before = source.record if source is not None else {}
        return {
            "objective": "classification",
            "task": self._data.name,
            "official_splits": self._data.official,
            "label_names": None if self._data.label_names is None else list(self._data.label_names),
            "examples": {split: len(examples) for split, examples in self._splits.items()},
            "truncated": {split: examples.truncated for split, examples in self._splits.items()},
            "freeze": self._freeze,
            "validation_loss": score["validation_loss"],
            **{name: score[name] for name in names},
            "floor": self._floor(),
            "pretrained_from": None if source is None else str(source.folder),
            "pretraining": {
                key: before.get(key) for key in ("data", "tokens", "seed", "validation_loss", "validation_perplexity")
            }
            if before
            else None,
        }


class LabelledText(Corpus):
    """The training sentences of a task, for a tokenizer to be trained on."""

    name = "task"

    def __init__(self, data: LabelledData) -> None:
        """``data``: of the task."""
        self._data = data

    def has(self, split: str) -> bool:
        """See ``Corpus``."""
        return split == "train"

    def fingerprint(self, split: str) -> str:
        """See ``Corpus``."""
        return storage.fingerprint(texts=self._data.splits[split].texts)

    def documents(self, split: str) -> Iterator[str]:
        """See ``Corpus``."""
        examples: Examples = self._data.splits[split]
        return (text for texts in examples.texts for text in texts if text.strip())


def freeze(model: LookupRobertaForSequenceClassification, what: str) -> None:
    """Takes parameters out of training.

    Args:
        model: the classifier.
        what: "none"; "tables" of the feed-forwards; "ffn", all of them; "encoder", all but the classification head.
    """
    encoder = model.roberta_prelayernorm
    feed_forwards = [module for module in model.modules() if isinstance(module, FeedForward)]
    frozen: Mapping[str, Callable[[], list[nn.Parameter]]] = {
        "none": list,
        "tables": lambda: [p for ffn in feed_forwards for p in ffn.parameter_roles().get("tables", [])],
        "ffn": lambda: [p for ffn in feed_forwards for p in ffn.parameters()],
        "encoder": lambda: list(encoder.parameters()),
    }
    for parameter in frozen[what]():
        parameter.requires_grad_(False)


@torch.inference_mode()
def predict(
    model: nn.Module,
    encoded: Encoded,
    batch_size: int,
    accelerator: Accelerator,
    *,
    stop: Callable[[], bool] | None = None,
    what: str = "scoring",
) -> Tensor:
    """Logits of every example, in float32, by the path that serves: evaluation mode, sentences of like length together.

    Args:
        model: a classifier, not wrapped.
        encoded: the split.
        batch_size: sentences in a forward pass.
        accelerator: of the run; all processes share the work and get the result.
        stop: asked before each batch whether to give up.
        what: for the progress bar.

    Returns:
        [N, labels] on the CPU.

    Raises:
        EvaluationStopped: ``stop`` said so.
    """
    was_training = model.training
    model.eval()
    logits = torch.zeros(len(encoded), model.config.num_labels, dtype=torch.float64)
    rank, world_size = accelerator.process_index, accelerator.num_processes
    rounds = -(-len(encoded) // (batch_size * world_size))
    batches = encoded.by_length(batch_size, rank, world_size)
    try:
        with full_precision(model):
            for _ in tqdm(range(rounds), desc=what, unit="batch", leave=False, disable=rank != 0):
                if stop is not None and stop():
                    raise EvaluationStopped
                batch = next(batches, None)
                if batch is not None:
                    input_ids, attention_mask = (part.to(accelerator.device) for part in batch[:2])
                    logits[batch.numbers] = model(input_ids, attention_mask).logits.double().cpu()
    finally:
        model.train(was_training)
    together = sum_over(accelerator)
    return (logits if together is None else together(logits)).float()
