import numpy as np
import pytest
import torch

from lookupffn.data.labelled.batches import Encoded, epoch_batches, steps_per_epoch, training_batches
from lookupffn.data.labelled.tasks import Examples


@pytest.fixture(scope="module")
def tokenizer():
    from tests.data.labelled.words import word_tokenizer

    return word_tokenizer()


def examples(count, pair=False):
    draw = np.random.default_rng(0)
    sentence = lambda: " ".join(draw.choice(list("abcdef"), size=draw.integers(1, 12)))  # noqa: E731
    texts = [tuple(sentence() for _ in range(1 + pair)) for _ in range(count)]
    return Examples(texts, draw.integers(0, 2, count))


def test_every_example_once_an_epoch_in_another_order():
    lengths = np.random.default_rng(1).integers(3, 60, 1000)
    first, second = (epoch_batches(lengths, 16, seed=5, epoch=epoch) for epoch in (0, 1))
    for batches in (first, second):
        assert len(batches) == steps_per_epoch(1000, 16)
        assert sorted(np.concatenate(batches)) == list(range(1000))
    assert not np.array_equal(np.concatenate(first), np.concatenate(second))
    padded = sum(len(batch) * lengths[batch].max() for batch in first)
    assert padded < 1.08 * lengths.sum()


@pytest.mark.parametrize(("world", "accumulation"), [(1, 1), (2, 1), (1, 4), (2, 2)])
def test_processes_share_the_same_batch(tokenizer, world, accumulation):
    encoded = Encoded(examples(50), tokenizer, 32, "train")
    alone = [
        step[0].numbers.tolist() for step in training_batches(encoded, seed=3, batch_size=16, start_step=0, end_step=7)
    ]
    parts = [
        list(
            training_batches(
                encoded, seed=3, batch_size=16, start_step=0, end_step=7, rank=rank, world_size=world,
                accumulation=accumulation,
            )
        )
        for rank in range(world)
    ]  # fmt: skip
    for step, whole in enumerate(alone):
        assert [n for rank in parts for micro in rank[step] for n in micro.numbers.tolist()] == whole


def test_a_resumed_run_sees_what_it_would_have_seen(tokenizer):
    encoded = Encoded(examples(50), tokenizer, 32, "train")
    whole = list(training_batches(encoded, seed=3, batch_size=8, start_step=0, end_step=20))
    rest = list(training_batches(encoded, seed=3, batch_size=8, start_step=9, end_step=20))
    for (one,), (other,) in zip(whole[9:], rest, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_padding_and_truncation(tokenizer, caplog):
    encoded = Encoded(examples(40, pair=True), tokenizer, 14, "validation")
    assert encoded.truncated > 0 and encoded.lengths.max() == 14
    assert f"{encoded.truncated} of 40 examples are longer than 14 tokens and are cut" in caplog.text
    batch = encoded.batch(np.arange(40))
    assert torch.equal(batch.attention_mask.sum(1), torch.from_numpy(encoded.lengths))
    assert (batch.input_ids[batch.attention_mask == 0] == tokenizer.pad_token_id).all()
    seen = torch.cat([b.numbers for b in encoded.by_length(7)])
    assert sorted(seen.tolist()) == list(range(40))
    assert all((encoded.lengths[b.numbers.numpy()].max() == b.input_ids.shape[1]) for b in encoded.by_length(7))


def test_pairs_have_the_tokenizers_own_form(tokenizer):
    encoded = Encoded(Examples([("a b", "c")], np.array([0])), tokenizer, 32, "train")
    expected = tokenizer("a b", "c")["input_ids"]
    assert encoded.batch(np.array([0])).input_ids.tolist() == [expected]
    assert expected.count(tokenizer.sep_token_id) == 3
