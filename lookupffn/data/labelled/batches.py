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
    """Steps in which every example is seen once; the last batch may be smaller."""
    return -(-examples // batch_size)


def epoch_batches(lengths: np.ndarray, batch_size: int, *, seed: int, epoch: int) -> list[np.ndarray]:
    """The batches of an epoch, a pure function of its arguments.

    A random order is cut into windows of ``WINDOW`` batches; each window is sorted by length and cut into batches, and
    the batches are put in a random order.

    Returns:
        ``steps_per_epoch`` arrays of example numbers, each example in one of them.
    """
    keys = stream_keys(seed ^ _ORDER_SALT, epoch, np.arange(len(lengths)))
    order = np.argsort(keys, kind="stable")
    batches = []
    for start in range(0, len(order), WINDOW * batch_size):
        window = order[start : start + WINDOW * batch_size]
        window = window[np.argsort(lengths[window], kind="stable")]
        batches += [window[first : first + batch_size] for first in range(0, len(window), batch_size)]
    places = np.argsort(stream_keys(seed ^ _BATCH_SALT, epoch, np.arange(len(batches))), kind="stable")
    return [batches[place] for place in places]


def training_batches(
    encoded: Encoded,
    *,
    seed: int,
    batch_size: int,
    start_step: int,
    end_step: int,
    rank: int = 0,
    world_size: int = 1,
    accumulation: int = 1,
) -> Iterator[list[LabelledBatch]]:
    """Steps ``start_step`` to ``end_step`` of process ``rank``: for each a list of ``accumulation`` micro-batches.

    A batch that does not divide evenly is shared out as evenly as it can be; a part without examples is left out.
    """
    per_epoch = steps_per_epoch(len(encoded), batch_size)
    epoch, batches = -1, []
    for step in range(start_step, end_step):
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            batches = epoch_batches(encoded.lengths, batch_size, seed=seed, epoch=epoch)
        parts = np.array_split(batches[step % per_epoch], world_size * accumulation)
        own = parts[rank * accumulation : (rank + 1) * accumulation]
        yield [encoded.batch(part) for part in own if len(part)]
