"""Masked-language-model perplexity that depends on the model and the text alone.

The sequences are an evenly spread subset of the validation split, their masks follow from the data's fingerprint, every
masked token weighs the same, and the per-token losses are added in float64: batch size, number of processes and number
of workers do not show in the result.

B: sequences in a batch, L: tokens a sequence, M: masked positions a sequence, V: vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from lookupffn.errors import UserError
from lookupffn.objectives.base import EvaluationStopped, full_precision


@dataclass(frozen=True)
class EvaluationResult:
    """What one evaluation found.

    Attributes:
        loss: mean negative log-likelihood of a masked token, in nats.
        perplexity: exp(loss).
        masked_tokens: how many tokens were predicted.
        sequences: in how many sequences.
    """

    loss: float
    perplexity: float
    masked_tokens: int
    sequences: int


def validation_sequences(count: int, sequence_length: int, max_tokens: int | None) -> np.ndarray:
    """Indices (int64, ascending) of the sequences that are scored.

    Args:
        count: sequences in the split.
        sequence_length: tokens in each.
        max_tokens: how many tokens to score at most, at least one sequence; None for all.
    """
    chosen = count if max_tokens is None else min(count, max(1, max_tokens // sequence_length))
    return np.arange(chosen, dtype=np.int64) * count // max(1, chosen)


@torch.inference_mode()
def evaluate_mlm(
    model: nn.Module,
    packed: Any,
    masker: Callable[..., Any],
    *,
    data_fingerprint: str,
    batch_size: int,
    max_tokens: int | None,
    rank: int = 0,
    world_size: int = 1,
    reduce: Callable[[Tensor], Tensor] | None = None,
    stop: Callable[[], bool] | None = None,
    progress: bool = True,
) -> EvaluationResult:
    """Scores a model on a packed split, in float32 whatever it was trained in.

    Args:
        model: called with input_ids [B, L] and masked_positions [B, M]; gives logits [B, M, V].
        packed: the split: len(), sequence_length, tokens [N, L].
        masker: makes a MaskedBatch from tokens and sequence ids.
        data_fingerprint: hex; fixes the masks.
        batch_size: sequences in a forward pass.
        max_tokens: see ``validation_sequences``.
        rank, world_size: this process, and how many share the work.
        reduce: sums a float64 tensor [2] over all processes; needed with more than one.
        stop: asked before each batch whether to give up; must answer all processes the same.
        progress: show a progress bar.

    Raises:
        UserError: the split is empty.
        EvaluationStopped: ``stop`` said so.
    """
    chosen = validation_sequences(len(packed), packed.sequence_length, max_tokens)
    parts = np.array_split(chosen, world_size)
    mine, most = parts[rank], len(parts[0])
    device = next(model.parameters()).device
    # loss and count, on the host: not every accelerator has float64
    totals = torch.zeros(2, dtype=torch.float64)
    training = model.training
    model.eval()
    try:
        with (
            full_precision(model),
            tqdm(total=len(mine), unit="seq", desc="validation", leave=False, disable=not progress) as bar,
        ):
            for start in range(0, most, batch_size):
                if stop is not None and stop():
                    raise EvaluationStopped
                ids = mine[start : start + batch_size]
                # one that has none left runs along uncounted: the forward pass of a sharded model needs every process
                batch = _masked(packed, masker, ids if len(ids) else chosen[:1], data_fingerprint)
                output = model(input_ids=batch.input_ids.to(device), masked_positions=batch.positions.to(device))
                losses = F.cross_entropy(
                    output.logits.float().flatten(0, 1), batch.labels.to(device).flatten(), reduction="none"
                )
                if len(ids):
                    totals += torch.tensor([float(losses.cpu().double().sum()), losses.numel()], dtype=torch.float64)
                bar.update(len(ids))
    finally:
        model.train(training)
    if reduce is not None:
        totals = reduce(totals)
    loss_sum, tokens = totals.tolist()
    if not tokens:
        raise UserError("the validation split has no masked tokens to score")
    loss = loss_sum / tokens
    return EvaluationResult(loss, perplexity(loss), int(tokens), len(chosen))


def perplexity(loss: float) -> float:
    """exp(loss); infinite where a diverged model's is too large for a float."""
    return math.exp(loss) if loss < 700 else math.inf


def unigram_log_probabilities(token_counts: np.ndarray) -> np.ndarray:
    """Log frequencies of the training text, one added to each count: [V] float64."""
    counts = token_counts + 1.0
    return np.log(counts) - np.log(counts.sum())


def unigram_loss(token_counts: np.ndarray, validation_counts: np.ndarray) -> float:
    """Mean loss, in nats, of predicting every token of the validation split by its frequency in the training text.

    The bar that any model must beat. It is a property of the two texts: neither masks nor the part of the split that a
    validation scores change it, and a masked token is any token that is not special.

    Args:
        token_counts: [V], of the training text, special tokens at zero; one is added to each.
        validation_counts: [V], of the whole validation split, likewise.

    Raises:
        UserError: the split has no tokens.
    """
    if not validation_counts.sum():
        raise UserError("the validation split has no tokens to score")
    return float(-(validation_counts * unigram_log_probabilities(token_counts)).sum() / validation_counts.sum())


def _masked(packed: Any, masker: Callable[..., Any], ids: np.ndarray, data_fingerprint: str) -> Any:
    """A MaskedBatch of the sequences ``ids``, with the masks that belong to this data."""
    return masker(np.asarray(packed.tokens[ids]), ids, seed=int(data_fingerprint[:15], 16), epoch=0)
