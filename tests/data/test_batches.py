import json

import numpy as np
import pytest
import torch

from lookupffn.data import Masker, PackedTokens, training_batches
from lookupffn.data.batches import epoch_order
from lookupffn.errors import UserError

LENGTH, COUNT = 16, 23


@pytest.fixture
def packed(tmp_path):
    """Sequence i is full of the token 10 + i, so that a label tells which sequence it came from."""
    tokens = np.repeat(np.arange(10, 10 + COUNT, dtype=np.uint16), LENGTH)
    tokens.tofile(tmp_path / "tokens.bin")
    index = {"what": "train split", "dtype": "uint16", "vocab_size": 100, "tokens": len(tokens)}
    (tmp_path / "index.json").write_text(json.dumps(index))
    return PackedTokens(tmp_path, LENGTH)


@pytest.fixture
def masker():
    return Masker(100, 4, range(5), 0.15)


def sequences(steps):
    return [int(label) - 10 for step in steps for batch in step for label in batch.labels[:, 0]]


def same(left, right):
    def flat(steps):
        return [field for step in steps for batch in step for field in batch]

    pairs = list(zip(flat(left), flat(right), strict=True))
    return bool(pairs) and all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_each_sequence_once_an_epoch(packed, masker, world_size):
    steps = COUNT * 3 // 4  # 69 samples: three epochs in steps of four, straddling their borders, one sample short
    options = {"seed": 1, "batch_size": 4}
    parts = [
        list(training_batches(packed, masker, **options, start_step=0, end_step=steps, rank=r, world_size=world_size))
        for r in range(world_size)
    ]
    order = sequences([[batch for part in parts for batch in part[step]] for step in range(steps)])
    for epoch in range(2):
        assert sorted(order[epoch * COUNT : (epoch + 1) * COUNT]) == list(range(COUNT))
    assert order[:COUNT] != order[COUNT : 2 * COUNT]
    assert order[:COUNT] == epoch_order(COUNT, seed=1, epoch=0).tolist()


def test_processes_and_accumulation_share_one_order_and_its_masks(packed, masker):
    options = {"seed": 2, "batch_size": 8, "start_step": 0, "end_step": 7}
    whole = [step[0] for step in training_batches(packed, masker, **options)]
    shares = [list(training_batches(packed, masker, **options, rank=r, world_size=2, accumulation=2)) for r in range(2)]
    for step, batch in enumerate(whole):
        pieces = [piece for share in shares for piece in share[step]]
        assert [len(piece.input_ids) for piece in pieces] == [2] * 4
        for field, parts in zip(batch, zip(*pieces, strict=True), strict=True):
            assert torch.equal(field, torch.cat(parts))


def test_a_resumed_run_gets_the_same_steps(packed, masker):
    options = {"seed": 3, "batch_size": 4, "end_step": 20}
    assert same(
        list(training_batches(packed, masker, start_step=0, **options))[13:],
        list(training_batches(packed, masker, start_step=13, **options)),
    )


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing(packed, masker, num_workers):
    options = {"seed": 4, "batch_size": 4, "start_step": 2, "end_step": 12}
    torch.manual_seed(0)
    alone = list(training_batches(packed, masker, **options))
    state = torch.get_rng_state()
    assert same(alone, list(training_batches(packed, masker, num_workers=num_workers, **options)))
    assert torch.equal(torch.get_rng_state(), state)  # dropout draws the same numbers too


def test_masks_differ_between_epochs(packed, masker):
    steps = list(training_batches(packed, masker, seed=5, batch_size=COUNT, start_step=0, end_step=2))
    by_sequence = [
        dict(zip(batch.labels[:, 0].tolist(), batch.positions.tolist(), strict=True)) for (batch,) in steps
    ]  # fmt: skip
    assert by_sequence[0].keys() == by_sequence[1].keys() and by_sequence[0] != by_sequence[1]


@pytest.mark.parametrize(("batch_size", "world_size", "accumulation"), [(6, 4, 1), (4, 1, 3), (0, 1, 1)])
def test_uneven_batch(packed, masker, batch_size, world_size, accumulation):
    with pytest.raises(UserError, match="batch_size"):
        training_batches(
            packed, masker, seed=0, batch_size=batch_size, start_step=0, end_step=1, world_size=world_size,
            accumulation=accumulation,
        )  # fmt: skip
