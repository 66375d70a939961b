"""Token vectors from counts of neighbours."""

import itertools

import numpy as np
import pytest

from lookupffn.data.ppmi import ppmi_vectors


def counts_of(tokens: np.ndarray, vocabulary: int, special: tuple[int, ...] = ()) -> np.ndarray:
    counts = np.bincount(tokens.ravel(), minlength=vocabulary)
    counts[list(special)] = 0
    return counts


def ppmi_by_loops(tokens: np.ndarray, vocabulary: int, special: tuple[int, ...]) -> np.ndarray:
    """[V, 2 V]: a token with the one before it, and with the one after it."""
    pairs = np.zeros((vocabulary, vocabulary))
    for row in tokens:
        for left, right in itertools.pairwise(row):
            if left not in special and right not in special:
                pairs[left, right] += 1
    parts = []
    for table in (pairs.T, pairs):
        weight = table.sum(0) ** 0.75
        with np.errstate(divide="ignore", invalid="ignore"):
            nats = np.log(table / table.sum(1, keepdims=True) / (weight / weight.sum()))
        parts.append(np.where(table > 0, np.maximum(nats, 0), 0))
    return np.concatenate(parts, 1)


@pytest.mark.parametrize("special", [(), (0, 3)])
def test_all_singular_values_give_the_matrix_back(special: tuple[int, ...]):
    V = 12
    # squares make frequencies uneven
    tokens = (np.random.default_rng(0).random((40, 16)) ** 2 * V).astype(np.uint16)
    counts = counts_of(tokens, V, special)
    vectors = ppmi_vectors(tokens, counts, V, seed=1).astype(np.float64)
    ppmi = ppmi_by_loops(tokens, V, special)
    # U S U^T, squared, is what the matrix is times its transpose, up to the scale
    found, right = np.linalg.matrix_power(vectors @ vectors.T, 2), ppmi @ ppmi.T
    np.testing.assert_allclose(found / np.trace(found), right / np.trace(right), atol=1e-6)
    assert np.square(vectors[counts > 0]).mean() == pytest.approx(1, rel=1e-5)
    assert not vectors[list(special)].any()


def test_the_seed_only_turns():
    tokens = np.random.default_rng(0).integers(0, 30, (50, 20))
    first, again, other = (ppmi_vectors(tokens, counts_of(tokens, 30), 8, seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.allclose(first, other)
    np.testing.assert_allclose(first @ first.T, other @ other.T, atol=1e-4)


def test_tokens_with_the_same_neighbours_are_alike():
    # 1 and 2 stand between the same tokens, 3 between others
    tokens = np.array([[4, 1, 5], [4, 2, 5], [6, 3, 7], [7, 3, 6]] * 10)
    v = ppmi_vectors(tokens, counts_of(tokens, 9), 4, seed=0)
    assert v.dtype == np.float32 and not v[[0, 8]].any()
    unit = v[1:4] / np.linalg.norm(v[1:4], axis=1, keepdims=True)
    assert unit[0] @ unit[1] > 0.99 and abs(unit[0] @ unit[2]) < 0.1


def test_text_without_neighbours_gives_zeros():
    tokens = np.array([[0, 1, 0, 2]])
    assert not ppmi_vectors(tokens, counts_of(tokens, 4, special=(0,)), 6, seed=0).any()
