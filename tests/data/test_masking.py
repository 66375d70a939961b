import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lookupffn.data import Masker
from lookupffn.errors import UserError

VOCABULARY, MASK, SPECIAL = 500, 4, (0, 1, 2, 3, 4)


def make(rate=0.15):
    return Masker(VOCABULARY, MASK, SPECIAL, rate)


def tokens_of(batch, length, seed=0, special_share=0.1):
    generator = np.random.default_rng(seed)
    tokens = generator.integers(5, VOCABULARY, (batch, length))
    return np.where(generator.random((batch, length)) < special_share, 2, tokens).astype(np.uint16)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(16, 200), st.floats(0.05, 0.4), st.integers(0, 2**62), st.integers(0, 50))
def test_count_order_labels_and_untouched_positions(batch, length, rate, seed, epoch):
    tokens = tokens_of(batch, length)
    masked = make(rate)(tokens, np.arange(batch), seed=seed, epoch=epoch)
    count = round(rate * length)
    assert masked.positions.shape == masked.labels.shape == (batch, count)
    assert masked.input_ids.dtype == masked.positions.dtype == masked.labels.dtype == torch.int64
    assert (masked.positions.diff(dim=1) > 0).all()
    original = torch.from_numpy(tokens.astype(np.int64))
    assert torch.equal(masked.labels, original.gather(1, masked.positions))
    assert not torch.isin(masked.labels, torch.tensor(SPECIAL)).any()
    assert torch.equal(masked.input_ids.scatter(1, masked.positions, masked.labels), original)


def test_paper_counts():
    assert make().masked_per_sequence(512) == 77
    assert make().masked_per_sequence(64) == 10


def test_shares_and_replacements():
    tokens = tokens_of(2000, 128)
    masked = make()(tokens, np.arange(2000), seed=1, epoch=0)
    shown = masked.input_ids.gather(1, masked.positions)
    hidden = shown == MASK
    kept = shown == masked.labels
    replaced = shown[~hidden & ~kept]
    assert hidden.double().mean().item() == pytest.approx(0.8, abs=0.01)
    assert kept.double().mean().item() == pytest.approx(0.1, abs=0.01)
    assert replaced.min() >= 5
    # every ordinary token comes up, about equally often
    counts = torch.bincount(replaced, minlength=VOCABULARY)[5:]
    assert (counts > 0).all() and counts.max() < 3 * counts.double().mean()


def test_positions_are_uniform():
    tokens = tokens_of(4000, 40, special_share=0)
    masked = make()(tokens, np.arange(4000), seed=3, epoch=2)
    counts = torch.bincount(masked.positions.flatten(), minlength=40).double()
    assert (counts / counts.mean() - 1).abs().max() < 0.2


def test_depends_on_seed_epoch_and_sequence_alone():
    tokens = tokens_of(8, 64)
    whole = make()(tokens, np.arange(8), seed=5, epoch=1)
    some = make()(tokens[[6, 2]], np.array([6, 2]), seed=5, epoch=1)
    for all_rows, rows in zip(whole, some, strict=True):
        assert torch.equal(all_rows[[6, 2]], rows)
    for other in ({"seed": 6, "epoch": 1}, {"seed": 5, "epoch": 2}):
        assert not torch.equal(make()(tokens, np.arange(8), **other).positions, whole.positions)


def test_the_given_tokens_are_not_written_to():
    tokens = tokens_of(4, 64).astype(np.int64)
    before = tokens.copy()
    make()(tokens, np.arange(4), seed=0, epoch=0)
    assert np.array_equal(tokens, before)


def test_known_values():
    """The masks of a seed may never change: results of finished runs rest on them."""
    tokens = np.arange(5, 205, dtype=np.uint16)[None]
    masked = make()(tokens, np.array([7]), seed=123, epoch=4)
    assert masked.positions.tolist() == KNOWN_POSITIONS
    assert masked.input_ids.gather(1, masked.positions).tolist() == KNOWN_SHOWN


KNOWN_POSITIONS = [
    [
        0,
        2,
        12,
        26,
        32,
        33,
        38,
        63,
        72,
        82,
        88,
        93,
        95,
        97,
        98,
        103,
        117,
        121,
        128,
        129,
        150,
        154,
        161,
        168,
        169,
        175,
        179,
        180,
        181,
        198,
    ]
]
KNOWN_SHOWN = [[4, 6, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 77, 4, 4, 358, 4, 4, 4, 4]]


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 15])
def test_bad_rate(rate):
    with pytest.raises(UserError, match="mask_rate"):
        make(rate)


def test_nothing_to_mask():
    with pytest.raises(UserError, match="masks nothing"):
        make(0.01)(tokens_of(1, 16), np.arange(1), seed=0, epoch=0)
    with pytest.raises(UserError, match="not special"):
        make()(np.full((1, 64), 2), np.arange(1), seed=0, epoch=0)
