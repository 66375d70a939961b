"""Padded batches of sentences of about the same length."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lookupffn.data.labelled.tasks import Examples
from lookupffn.data.masking import stream_keys
from lookupffn.errors import UserError

logger = logging.getLogger(__name__)

# Sentences are sorted by length within this many batches: long enough that a batch has hardly any padding, short enough
# that an epoch remains random
WINDOW = 64
_ORDER_SALT, _BATCH_SALT = 0x6C6162656C6C6564, 0x6261746368


class LabelledBatch(NamedTuple):
    """One micro-batch.

    Attributes:
        input_ids, attention_mask: [B, L], L the longest of them.
        labels: [B] class numbers or scores.
        numbers: [B] of the examples in their split.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    numbers: Tensor


class Encoded:
    """A split as token ids.

    Attributes:
        lengths: [N] tokens of each example.
        labels: [N].
        truncated: how many examples were cut.
    """

    def __init__(self, examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int, split: str) -> None:
        """Tokenizes every example, with the tokenizer's own form of a pair; the longer sentence is cut first."""
        ids = tokenizer(*_columns(examples.texts))["input_ids"]
        long = [number for number, tokens in enumerate(ids) if len(tokens) > max_length]
        if long:
            cut = tokenizer(*_columns([examples.texts[i] for i in long]), truncation=True, max_length=max_length)
            for number, tokens in zip(long, cut["input_ids"], strict=True):
                ids[number] = tokens
            logger.warning(
                "%s: %d of %d examples are longer than %d tokens and are cut", split, len(long), len(ids), max_length
            )
        self.truncated = len(long)
        self.lengths = np.array([len(tokens) for tokens in ids])
        self.labels = torch.from_numpy(examples.labels)
        self._pad = tokenizer.pad_token_id
        self._tokens = np.concatenate([np.asarray(tokens, dtype=np.int32) for tokens in ids])
        self._starts = np.concatenate([[0], np.cumsum(self.lengths)])

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, numbers: np.ndarray) -> LabelledBatch:
        """The examples of these numbers, padded to the longest of them."""
        width = int(self.lengths[numbers].max())
        ids = np.full((len(numbers), width), self._pad, dtype=np.int64)
        mask = np.zeros((len(numbers), width), dtype=np.int64)
        for row, number in enumerate(numbers):
            length = self.lengths[number]
            ids[row, :length] = self._tokens[self._starts[number] : self._starts[number] + length]
            mask[row, :length] = 1
        chosen = torch.from_numpy(numbers)
        return LabelledBatch(torch.from_numpy(ids), torch.from_numpy(mask), self.labels[chosen], chosen)

    def by_length(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[LabelledBatch]:
        """Every example once, over all processes, from the shortest to the longest."""
        order = np.argsort(self.lengths, kind="stable")
        starts = range(rank * batch_size, len(order), world_size * batch_size)
        return (self.batch(order[start : start + batch_size]) for start in starts)


def _columns(texts: list[tuple[str, ...]]) -> list[list[str]]:
    return [list(column) for column in zip(*texts, strict=True)]


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Whole batches of an epoch: every step weighs its examples alike, so what does not fill a batch is left out.

    Raises:
        UserError: there is not even one.
    """
    if examples < batch_size:
        raise UserError(f"training.batch_size={batch_size} is more than the {examples} training examples: lower it")
    return examples // batch_size


def epoch_batches(lengths: np.ndarray, batch_size: int, *, seed: int, epoch: int) -> list[np.ndarray]:
    """The batches of an epoch, a pure function of its arguments.

    A random order is cut into windows of ``WINDOW`` batches; each window is sorted by length and cut into batches, and
    the batches are put in a random order.

    Returns:
        ``steps_per_epoch`` arrays of ``batch_size`` example numbers, each example at most once; which examples are left
        over is another matter in each epoch.
    """
    keys = stream_keys(seed ^ _ORDER_SALT, epoch, np.arange(len(lengths)))
    order = np.argsort(keys, kind="stable")[: steps_per_epoch(len(lengths), batch_size) * batch_size]
    batches = []
    for start in range(0, len(order), WINDOW * batch_size):
        window = order[start : start + WINDOW * batch_size]
        window = window[np.argsort(lengths[window], kind="stable")]
        batches += [window[first : first + batch_size] for first in range(0, len(window), batch_size)]
    places = np.argsort(stream_keys(seed ^ _BATCH_SALT, epoch, np.arange(len(batches))), kind="stable")
    return [batches[place] for place in places]


class TrainingOrder:
    """Which examples each step of a training sees: a pure function of (seed, step), the epoch at hand remembered."""

    def __init__(self, encoded: Encoded, *, seed: int, batch_size: int) -> None:
        """
        Raises:
            UserError: not even one batch.
        """
        self.encoded, self.seed, self.batch_size = encoded, seed, batch_size
        self.steps_per_epoch = steps_per_epoch(len(encoded), batch_size)
        self._epoch = -1
        self._batches: list[np.ndarray] = []
        self._tokens: list[np.ndarray] = []  # of each epoch, tokens up to the end of each step

    def step(self, number: int) -> np.ndarray:
        """The examples of a step, [batch_size]."""
        epoch, place = divmod(number, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            self._batches = epoch_batches(self.encoded.lengths, self.batch_size, seed=self.seed, epoch=epoch)
        return self._batches[place]

    def tokens(self, steps: int) -> int:
        """Tokens of the first ``steps`` steps, padding not counted."""
        epochs, rest = divmod(steps, self.steps_per_epoch)
        while len(self._tokens) < epochs + bool(rest):
            batches = epoch_batches(self.encoded.lengths, self.batch_size, seed=self.seed, epoch=len(self._tokens))
            self._tokens.append(np.cumsum([self.encoded.lengths[batch].sum() for batch in batches]))
        whole = sum(int(epoch[-1]) for epoch in self._tokens[:epochs])
        return whole + (int(self._tokens[epochs][rest - 1]) if rest else 0)

    def batches(
        self, *, start_step: int, end_step: int, rank: int = 0, world_size: int = 1, accumulation: int = 1
    ) -> Iterator[list[LabelledBatch]]:
        """Steps ``start_step`` to ``end_step`` of process ``rank``: for each ``accumulation`` equal micro-batches.

        The batch size must be a multiple of ``world_size * accumulation``.
        """
        micro = self.batch_size // (world_size * accumulation)
        for number in range(start_step, end_step):
            own = self.step(number)[rank * accumulation * micro : (rank + 1) * accumulation * micro]
            yield [self.encoded.batch(own[start : start + micro]) for start in range(0, len(own), micro)]
