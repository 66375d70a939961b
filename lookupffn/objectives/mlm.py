"""Masked language modelling on packed text: pretraining."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from lookupffn.data import MaskedBatch, Masker, PreparedData, prepare_data, training_batches
from lookupffn.data.ppmi import ppmi_vectors
from lookupffn.distributed.processes import sum_over
from lookupffn.models import LookupRobertaForMaskedLM, fit_tokenizer
from lookupffn.models.loading import check_vocabulary, load_model
from lookupffn.objectives.base import Objective, model_costs
from lookupffn.objectives.model_config import check_tokenizer, own_tokenizer
from lookupffn.objectives.perplexity import (
    evaluate_mlm,
    perplexity,
    unigram_log_probabilities,
    unigram_loss,
    validation_sequences,
)
from lookupffn.runs.records import write_token_counts
from lookupffn.storage import cache_root
from lookupffn.tokenizers import unused_ids, vocabulary_size

# nats below the unigram loss at which a model has left the plateau that masked language modelling starts on
PLATEAU_MARGIN = 0.5
# and at which it is past the second plateau, where attention has learned little beyond the nearest neighbours: runs of
# one setting that pass it early or late end up to half a nat apart
SECOND_FALL_MARGIN = 2.0


class MaskedLanguageModelling(Objective):
    """Predict the tokens that were masked; the bar is the unigram distribution of the training text."""

    name = "masked language modelling"
    sections = ("ffn", "model", "data", "tokenizer", "evaluation")

    def prepare(self, folder: Path) -> None:
        """See ``Objective``."""
        config, training = self.config, self.config.training
        assert config.data is not None
        self._seed, mask_rate, batch_size = config.run.seed, config.data.mask_rate, training.batch_size
        self._batches = partial(
            training_batches, seed=self._seed, batch_size=batch_size, num_workers=training.num_workers
        )
        self._evaluation_batch, self._max_tokens = config.evaluation.batch_size, config.evaluation.max_tokens
        self._on_the_way = min(filter(None, (training.validate_tokens, self._max_tokens)), default=None)
        self.final_score_differs = self._on_the_way != self._max_tokens

        tokenizer = own_tokenizer(folder, config.tokenizer)
        self._data = data = prepare_data(config.data, tokenizer, cache_root(config.run.cache_dir))
        self.tokenizer, length = data.tokenizer, data.train.sequence_length
        self._masker = build_masker(data, mask_rate)
        self._masked = self._masker.masked_per_sequence(length)
        self.tokens_per_step, self.steps_per_epoch = batch_size * length, len(data.train) / batch_size
        self._unigram_loss = unigram_loss(data.token_counts, data.validation_counts)

    def write_files(self, folder: Path) -> None:
        """See ``Objective``; the token counts, so that an evaluation on other text has a bar."""
        write_token_counts(folder, self._data.token_counts.tolist())

    def fingerprints(self) -> dict[str, str]:
        """See ``Objective``."""
        return {name: getattr(self._data, name) for name in ("data_fingerprint", "tokenizer_fingerprint")}

    def build_model(self, checkpoint: Path | None) -> LookupRobertaForMaskedLM:
        """See ``Objective``."""
        torch.manual_seed(self._seed)
        if checkpoint is not None:  # the trainer has compared the tokenizers
            return load_model(checkpoint)
        if self.source is not None:
            model = load_model(self.source.folder)
            check_vocabulary(self.tokenizer, model.config, self.source.folder)
            check_tokenizer(self.tokenizer, self.source)
            return model
        model = LookupRobertaForMaskedLM(fit_tokenizer(self.model_config, self.tokenizer))
        self._start_from_counts(model)
        return model

    @torch.no_grad()
    def _start_from_counts(self, model: LookupRobertaForMaskedLM) -> None:
        """The starts that the training text's own counts give, the same for every feed-forward."""
        counts = self._data.token_counts
        if self.config.model.output_bias_init == "unigram":
            # Learned, the unigram moves all token embeddings the same way, since the output matrix is tied to them,
            # and tokens look alike to attention for longer.
            model.lm_head.bias.copy_(torch.from_numpy(unigram_log_probabilities(counts)))
        if self.config.model.embedding_init == "ppmi":
            # Until the embeddings know which tokens have the same neighbours, attention has nothing to pass on.
            embeddings_Vd = model.get_input_embeddings().weight
            vectors_Vd = torch.from_numpy(
                ppmi_vectors(self._data.train.tokens, counts, model.config.hidden_size, self._seed)
            )
            known = vectors_Vd.any(1).nonzero().squeeze(1)
            embeddings_Vd[known] = vectors_Vd[known] * model.config.initializer_range

    def costs(self, model: LookupRobertaForMaskedLM) -> dict[str, Any]:
        """See ``Objective``."""
        return mlm_costs(model, self._masker, self._data.train.sequence_length)

    @property
    def bar(self) -> str:
        """See ``Objective``."""
        return f"unigram perplexity {perplexity(self._unigram_loss):.1f}"

    def tokens(self, steps: int) -> int:
        """See ``Objective``."""
        return int(steps * self.tokens_per_step)

    def training_batches(
        self, *, start_step: int, end_step: int, rank: int, world_size: int, accumulation: int
    ) -> Iterator[list[MaskedBatch]]:
        """See ``Objective``."""
        return self._batches(
            self._data.train, self._masker, start_step=start_step, end_step=end_step, rank=rank,
            world_size=world_size, accumulation=accumulation,
        )  # fmt: skip

    def loss(self, model: nn.Module, batch: MaskedBatch, device: torch.device) -> Tensor:
        """See ``Objective``."""
        input_ids, positions, labels = (part.to(device, non_blocking=True) for part in batch)
        return model(input_ids=input_ids, masked_positions=positions, labels=labels).loss

    def score(
        self,
        model: LookupRobertaForMaskedLM,
        accelerator: Accelerator,
        *,
        final: bool,
        stop: Callable[[], bool] | None = None,
    ) -> dict[str, float]:
        """See ``Objective``; validation_loss and validation_perplexity."""
        result = evaluate_mlm(
            model, self._data.validation, self._masker,
            data_fingerprint=self._data.data_fingerprint, batch_size=self._evaluation_batch,
            max_tokens=self._max_tokens if final else self._on_the_way,
            rank=accelerator.process_index, world_size=accelerator.num_processes, reduce=sum_over(accelerator),
            stop=stop, progress=accelerator.is_main_process,
        )  # fmt: skip
        return {"validation_loss": result.loss, "validation_perplexity": result.perplexity}

    def describe(self, line: dict[str, Any]) -> str:
        """See ``Objective``."""
        return f"validation perplexity {line['validation_perplexity']:.2f} (loss {line['validation_loss']:.4f})"

    def record(self) -> dict[str, Any]:
        """See ``Objective``."""
        return {"unigram_perplexity": perplexity(self._unigram_loss)}

    def summary(self, score: dict[str, Any], lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """See ``Objective``."""
        split = self._data.validation
        scored = validation_sequences(len(split), split.sequence_length, self._max_tokens)
        return {
            "data": self._data.name,
            **{key: score[key] for key in ("validation_loss", "validation_perplexity")},
            "unigram_loss": self._unigram_loss,
            "unigram_perplexity": perplexity(self._unigram_loss),
            "masked_validation_tokens": len(scored) * self._masked,
            "plateau_exit_step": first_step_below(lines, self._unigram_loss - PLATEAU_MARGIN),
            "second_fall_step": first_step_below(lines, self._unigram_loss - SECOND_FALL_MARGIN),
        }


def build_masker(data: PreparedData, mask_rate: float) -> Masker:
    """The masker of a tokenizer."""
    tokenizer = data.tokenizer
    never = [*tokenizer.all_special_ids, *unused_ids(tokenizer)]
    return Masker(vocabulary_size(tokenizer), tokenizer.mask_token_id, never, mask_rate)


def mlm_costs(model: LookupRobertaForMaskedLM, masker: Masker, sequence_length: int) -> dict[str, Any]:
    """``model_costs`` with the LM head on the masked positions of sequences of a length."""
    masked = masker.masked_per_sequence(sequence_length)
    return model_costs(model, model.cost(sequence_length, masked / sequence_length))


def first_step_below(lines: Sequence[dict[str, Any]], loss: float) -> int | None:
    """The first validation in the lines of metrics.jsonl with at most this loss; None where there is none."""
    for line in lines:
        found = line.get("validation_loss")
        if found is not None and found <= loss:
            return line["step"]
    return None
