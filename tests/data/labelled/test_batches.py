import numpy as np
import pytest
import torch

from lookupffn.data.labelled.batches import Encoded, TrainingOrder, epoch_batches, steps_per_epoch
from lookupffn.data.labelled.tasks import Examples
from lookupffn.errors import UserError
from tests.data.labelled.words import word_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer()


def examples(count, pair=False):
    draw = np.random.default_rng(0)
    sentence = lambda: " ".join(draw.choice(list("abcdef"), size=draw.integers(1, 12)))  # noqa: E731
    texts = [tuple(sentence() for _ in range(1 + pair)) for _ in range(count)]
    return Examples(texts, draw.integers(0, 2, count))


def test_every_example_at_most_once_an_epoch_in_another_order():
    lengths = np.random.default_rng(1).integers(3, 60, 1005)
    first, second = (epoch_batches(lengths, 16, seed=5, epoch=epoch) for epoch in (0, 1))
    for batches in (first, second):
        assert len(batches) == steps_per_epoch(1005, 16) == 62
        assert len(set(np.concatenate(batches))) == 62 * 16
    left = [set(range(1005)) - set(np.concatenate(batches)) for batches in (first, second)]
    assert len(left[0]) == len(left[1]) == 13 and left[0] != left[1]
    assert not np.array_equal(np.concatenate(first), np.concatenate(second))
    padded = sum(len(batch) * lengths[batch].max() for batch in first)
    assert padded < 1.08 * sum(lengths[batch].sum() for batch in first)


def test_too_few_examples_are_refused():
    with pytest.raises(UserError, match=r"training\.batch_size=16 is more than the 15 training examples"):
        steps_per_epoch(15, 16)


@pytest.mark.parametrize(("world", "accumulation"), [(1, 1), (2, 1), (1, 4), (2, 2)])
def test_processes_share_the_same_batch(tokenizer, world, accumulation):
    order = TrainingOrder(Encoded(examples(50), tokenizer, 32, "train"), seed=3, batch_size=16)
    alone = [step[0].numbers.tolist() for step in order.batches(start_step=0, end_step=7)]
    shape = {"world_size": world, "accumulation": accumulation}
    parts = [list(order.batches(start_step=0, end_step=7, rank=rank, **shape)) for rank in range(world)]
    for step, whole in enumerate(alone):
        assert [n for rank in parts for micro in rank[step] for n in micro.numbers.tolist()] == whole
        assert {len(micro.labels) for rank in parts for micro in rank[step]} == {16 // (world * accumulation)}


def test_a_resumed_run_sees_what_it_would_have_seen(tokenizer):
    encoded = Encoded(examples(50), tokenizer, 32, "train")
    whole = list(TrainingOrder(encoded, seed=3, batch_size=8).batches(start_step=0, end_step=20))
    rest = list(TrainingOrder(encoded, seed=3, batch_size=8).batches(start_step=9, end_step=20))
    for (one,), (other,) in zip(whole[9:], rest, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_tokens_are_those_of_the_batches(tokenizer):
    order = TrainingOrder(Encoded(examples(50), tokenizer, 32, "train"), seed=3, batch_size=8)
    seen = [int(batch.attention_mask.sum()) for (batch,) in order.batches(start_step=0, end_step=20)]
    assert [order.tokens(steps) for steps in range(21)] == [sum(seen[:steps]) for steps in range(21)]


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
