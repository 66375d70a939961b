"""The training order: a pure function of (seed, step).

Sample i of a training, counted over all processes from its start, is in epoch i // N at place i % N of that epoch's
permutation. Nothing is remembered between steps, so a resumed run asks for its steps and gets the same ones.
"""

from collections.abc import Iterator

import numpy as np
import torch

from lookupffn import signals
from lookupffn.data.masking import MaskedBatch, Masker, stream_keys
from lookupffn.data.packing import PackedTokens
from lookupffn.errors import UserError

# keeps the order of an epoch independent of its masks, which have the same seed
_ORDER_SALT = 0x6F72646572  # "order"


def epoch_order(count: int, *, seed: int, epoch: int) -> np.ndarray:
    """The permutation [N] of an epoch's sequences; the same on every machine and library version."""
    return np.argsort(stream_keys(seed ^ _ORDER_SALT, epoch, np.arange(count)), kind="stable")


class _Steps(torch.utils.data.Dataset):
    """Step number -> this process's micro-batches of it."""

    def __init__(
        self, packed: PackedTokens, masker: Masker, seed: int, batch_size: int, rank: int, world_size: int, parts: int
    ) -> None:
        self.packed, self.masker, self.seed = packed, masker, seed
        self.batch_size, self.rank, self.world_size, self.parts = batch_size, rank, world_size, parts
        self._orders: dict[int, np.ndarray] = {}

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            # a step looks at two epochs at most
            self._orders = {known: order for known, order in self._orders.items() if known == epoch - 1}
            self._orders[epoch] = epoch_order(len(self.packed), seed=self.seed, epoch=epoch)
        return self._orders[epoch]

    def __getitem__(self, step: int) -> list[MaskedBatch]:
        share = self.batch_size // self.world_size
        first = step * self.batch_size + self.rank * share
        micro = share // self.parts
        return [self._samples(start, start + micro) for start in range(first, first + share, micro)]

    def _samples(self, start: int, end: int) -> MaskedBatch:
        count = len(self.packed)
        parts: list[MaskedBatch] = []
        while start < end:
            epoch, place = divmod(start, count)
            stop = min(end, (epoch + 1) * count)
            ids = self._order(epoch)[place : place + stop - start]
            parts.append(self.masker(self.packed.tokens[ids], ids, seed=self.seed, epoch=epoch))
            start = stop
        return MaskedBatch(*map(torch.cat, zip(*parts, strict=True))) if len(parts) > 1 else parts[0]


def _as_is(batch: list[MaskedBatch]) -> list[MaskedBatch]:
    return batch


def _start_worker(number: int) -> None:
    # a batch system signals every process of a job, and the step that is under way still needs its batches
    signals.ignore()


def training_batches(
    packed: PackedTokens,
    masker: Masker,
    *,
    seed: int,
    batch_size: int,
    start_step: int,
    end_step: int,
    rank: int = 0,
    world_size: int = 1,
    accumulation: int = 1,
    num_workers: int = 0,
) -> Iterator[list[MaskedBatch]]:
    """Steps ``start_step`` to ``end_step`` of process ``rank``: for each a list of ``accumulation`` micro-batches.

    Args:
        batch_size: sequences a step over all processes and micro-batches.
        num_workers: processes that prepare batches ahead; the batches are the same for any number.

    Raises:
        UserError: ``batch_size`` cannot be shared out evenly.
    """
    if batch_size < 1 or batch_size % (world_size * accumulation):
        raise UserError(
            f"training.batch_size {batch_size} does not divide into {world_size} processes of {accumulation} "
            f"accumulation steps: use a multiple of {world_size * accumulation}"
        )
    steps = _Steps(packed, masker, seed, batch_size, rank, world_size, accumulation)
    numbers = range(start_step, end_step)
    if num_workers == 0:
        return map(steps.__getitem__, numbers)
    return iter(
        torch.utils.data.DataLoader(
            steps,
            batch_size=None,
            sampler=numbers,
            num_workers=num_workers,
            collate_fn=_as_is,
            worker_init_fn=_start_worker,
            # its own generator: the loader would otherwise draw from the one that dropout uses
            generator=torch.Generator().manual_seed(seed % 2**63),
        )
    )
