"""Which tokens are hidden, and behind what: a pure function of (seed, epoch, sequence).

Random numbers come from SplitMix64 used as a counter-based generator: a sequence's draws need no state, are the same
for any batch, worker or process that holds the sequence, and do not change with a library's version.
Dimensions: B sequences, L tokens a sequence, M masked tokens a sequence, V vocabulary.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch

from lookupffn.config.data import masked_count
from lookupffn.errors import UserError

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_NEVER = np.uint64(2**64 - 1)
_TO_MASK, _TO_RANDOM = 0.8, 0.1  # of the chosen tokens; the rest stay as they are
# the draws of a position: place in the choice, treatment, replacement
_CHOICE, _TREATMENT, _REPLACEMENT = np.uint64(0), np.uint64(1), np.uint64(2)
_DRAWS = np.uint64(4)


def mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's output function on uint64: a bijection whose outputs pass for random."""
    values = (values ^ (values >> np.uint64(30))) * _MIX_1
    values = (values ^ (values >> np.uint64(27))) * _MIX_2
    return values ^ (values >> np.uint64(31))


def stream_keys(seed: int, epoch: int, ids: np.ndarray) -> np.ndarray:
    """A uint64 key for each of ``ids``, independent between seeds and epochs."""
    key = np.array([seed % 2**64], dtype=np.uint64)
    epochs = np.array([epoch % 2**64], dtype=np.uint64)  # arrays wrap around in silence, scalars warn
    key = mix(mix(key + _GOLDEN) + epochs * _GOLDEN + _GOLDEN)
    return mix(key + (np.asarray(ids).astype(np.uint64) + np.uint64(1)) * _GOLDEN)


def _draw(keys: np.ndarray, positions: np.ndarray, kind: np.uint64) -> np.ndarray:
    """Random uint64 for every (sequence, position): keys [B, 1], positions [B or 1, n] -> [B, n]."""
    return mix(keys + (positions * _DRAWS + kind + np.uint64(1)) * _GOLDEN)


class MaskedBatch(NamedTuple):
    """What a model is shown and asked, all int64."""

    input_ids: torch.Tensor  # [B, L]
    positions: torch.Tensor  # [B, M], ascending
    labels: torch.Tensor  # [B, M], the tokens that stood there


class Masker:
    """Hides exactly M = round(mask_rate * L) tokens a sequence: 80% behind the mask token, 10% behind a random one.

    Special tokens are neither chosen nor used as a replacement.
    """

    def __init__(self, vocab_size: int, mask_token_id: int, special_ids: Iterable[int], mask_rate: float) -> None:
        """
        Raises:
            UserError: ``mask_rate`` is not between 0 and 1.
        """
        if not 0 < mask_rate < 1:
            raise UserError(f"mask_rate must be between 0 and 1, not {mask_rate!r}")
        self.mask_rate = mask_rate
        self.vocab_size = int(vocab_size)
        self.mask_token_id = int(mask_token_id)
        self._special = np.zeros(self.vocab_size, dtype=bool)
        self._special[[i for i in special_ids if i < self.vocab_size]] = True
        self._special[self.mask_token_id] = True
        self._ordinary = np.flatnonzero(~self._special)

    def masked_per_sequence(self, sequence_length: int) -> int:
        """M for sequences of L tokens.

        Raises:
            UserError: the rate leaves nothing to mask.
        """
        return masked_count(self.mask_rate, sequence_length)

    def __call__(self, tokens: np.ndarray, sequence_ids: np.ndarray, *, seed: int, epoch: int) -> MaskedBatch:
        """Mask sequences.

        Args:
            tokens: [B, L], any integer type.
            sequence_ids: [B], each sequence's number in its split.
            seed, epoch: with the sequence id they decide everything that is random.

        Raises:
            UserError: a sequence has fewer ordinary tokens than must be masked.
        """
        tokens_BL = np.asarray(tokens).astype(np.int64)
        length = tokens_BL.shape[1]
        count = self.masked_per_sequence(length)
        keys_B1 = stream_keys(seed, epoch, sequence_ids)[:, None]
        order_BL = _draw(keys_B1, np.arange(length, dtype=np.uint64)[None], _CHOICE)
        special_BL = self._special[tokens_BL]
        if length - int(special_BL.sum(axis=1).max(initial=0)) < count:
            raise UserError(
                f"a sequence of {length} tokens has fewer than {count} that are not special: the documents are too "
                "short; lower data.mask_rate or give longer ones"
            )
        order_BL[special_BL] = _NEVER
        positions_BM = np.sort(np.argpartition(order_BL, count - 1, axis=1)[:, :count], axis=1)
        labels_BM = np.take_along_axis(tokens_BL, positions_BM, axis=1)

        at_BM = positions_BM.astype(np.uint64)
        treatment_BM = (_draw(keys_B1, at_BM, _TREATMENT) >> np.uint64(11)) * 2.0**-53
        drawn_BM = _draw(keys_B1, at_BM, _REPLACEMENT) % np.uint64(len(self._ordinary))
        shown_BM = np.where(treatment_BM < _TO_MASK, self.mask_token_id, labels_BM)
        random_BM = (treatment_BM >= _TO_MASK) & (treatment_BM < _TO_MASK + _TO_RANDOM)
        shown_BM = np.where(random_BM, self._ordinary[drawn_BM.astype(np.int64)], shown_BM)
        np.put_along_axis(tokens_BL, positions_BM, shown_BM, axis=1)
        return MaskedBatch(torch.from_numpy(tokens_BL), torch.from_numpy(positions_BM), torch.from_numpy(labels_BM))
