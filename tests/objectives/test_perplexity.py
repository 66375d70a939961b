"""The same number whatever the batch size, the number of processes or the training precision."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from lookupffn.data import Masker
from lookupffn.errors import UserError
from lookupffn.objectives.perplexity import (
    evaluate_mlm,
    unigram_log_probabilities,
    unigram_loss,
    validation_sequences,
)

VOCABULARY, LENGTH, FINGERPRINT = 50, 16, "0123456789abcdef"


class Split:
    """Stands for PackedTokens."""

    def __init__(self, count: int) -> None:
        self.sequence_length = LENGTH
        self.tokens = np.random.default_rng(0).integers(5, VOCABULARY, (count, LENGTH), dtype=np.uint16)

    def __len__(self) -> int:
        return len(self.tokens)


class Model(nn.Module):
    """Looks at every token of the sequence, so that a wrong mask or batch shows."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 8)
        self.mix = nn.Linear(LENGTH * 8, LENGTH * 8)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(8, VOCABULARY)

    def forward(self, input_ids: torch.Tensor, masked_positions: torch.Tensor) -> SimpleNamespace:
        hidden = self.mix(self.dropout(self.embedding(input_ids).flatten(1))).view(len(input_ids), LENGTH, 8)
        return SimpleNamespace(logits=self.head(hidden[torch.arange(len(hidden))[:, None], masked_positions]))


@pytest.fixture
def masker() -> Masker:
    return Masker(VOCABULARY, 4, range(5), 0.25)


def evaluate(model: nn.Module, masker: Masker, split: Split, **changes):
    arguments = {"data_fingerprint": FINGERPRINT, "batch_size": 7, "max_tokens": None, "progress": False}
    return evaluate_mlm(model, split, masker, **(arguments | changes))


def test_equals_the_definition(masker: Masker):
    model, split = Model(), Split(20)
    batch = masker(split.tokens, np.arange(20), seed=int(FINGERPRINT[:15], 16), epoch=0)
    with torch.no_grad():
        log_probabilities = model.eval()(batch.input_ids, batch.positions).logits.double().log_softmax(-1)
    expected = -log_probabilities.gather(-1, batch.labels.unsqueeze(-1)).mean().item()
    model.train()
    result = evaluate(model, masker, split)
    assert result.loss == pytest.approx(expected, rel=1e-6)
    assert result.perplexity == math.exp(result.loss)
    assert (result.masked_tokens, result.sequences) == (20 * 4, 20)
    assert model.training  # as it was found


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_batch_size_does_not_show(batch_size: int, masker: Masker):
    model, split = Model(), Split(150)
    reference = evaluate(model, masker, split, batch_size=150)
    assert evaluate(model, masker, split, batch_size=batch_size).loss == pytest.approx(reference.loss, rel=1e-6)


@pytest.mark.parametrize("world_size", [2, 3, 200])
def test_number_of_processes_does_not_show(world_size: int, masker: Masker):
    model, split = Model(), Split(150)
    parts: list[torch.Tensor] = []
    for rank in range(world_size):

        def keep(totals: torch.Tensor) -> torch.Tensor:
            parts.append(totals)
            return torch.tensor([1.0, 1.0], dtype=torch.float64)

        evaluate(model, masker, split, rank=rank, world_size=world_size, reduce=keep)
    loss_sum, tokens = torch.stack(parts).sum(0).tolist()
    assert tokens == 150 * 4
    assert loss_sum / tokens == pytest.approx(evaluate(model, masker, split).loss, rel=1e-6)


def test_autocast_of_training_is_taken_off(masker: Masker):
    model, split = Model(), Split(20)
    reference = evaluate(model, masker, split).loss
    original = model.forward

    def lossy(*args, **kwargs):
        with torch.autocast("cpu", torch.bfloat16):
            return original(*args, **kwargs)

    model.forward = lossy
    assert evaluate(model, masker, split).loss == reference
    assert model.forward is lossy


def test_subset_is_evenly_spread():
    assert validation_sequences(10, 16, None).tolist() == list(range(10))
    assert validation_sequences(10, 16, 5 * 16 + 3).tolist() == [0, 2, 4, 6, 8]
    assert validation_sequences(10, 16, 1).tolist() == [0]
    assert validation_sequences(10, 16, 10**9).tolist() == list(range(10))
    chosen = validation_sequences(1000, 16, 333 * 16)
    assert len(set(chosen.tolist())) == 333 and chosen.max() > 990


def test_unigram():
    # one is added to each training count: probabilities 4/8, 1/8, 3/8
    loss = unigram_loss(np.array([3, 0, 2]), np.array([1, 2, 1]))
    assert loss == pytest.approx(-(math.log(4 / 8) + 2 * math.log(1 / 8) + math.log(3 / 8)) / 4, rel=1e-12)


def test_unigram_is_what_masked_tokens_cost_on_average(masker: Masker):
    split = Split(2000)
    counts = np.bincount(split.tokens.ravel(), minlength=VOCABULARY)
    training = np.arange(VOCABULARY)
    labels = masker(split.tokens, np.arange(2000), seed=1, epoch=0).labels.numpy()
    assert unigram_loss(training, counts) == pytest.approx(
        -unigram_log_probabilities(training)[labels].mean(), rel=0.01
    )


def test_empty_split(masker: Masker):
    with pytest.raises(UserError, match="no masked tokens"):
        evaluate(Model(), masker, Split(0))
    with pytest.raises(UserError, match="no tokens"):
        unigram_loss(np.ones(3), np.zeros(3))
