"""Token vectors from a text's own counts of neighbours, which embeddings may start from."""

from __future__ import annotations

import numpy as np

# tokens counted, so that a start takes seconds however long the text is
_MOST_TOKENS = 10**7
# exponent of the neighbours' frequencies, without which rare ones weigh most
_SMOOTHING = 0.75
_POWER_ITERATIONS = 3


def ppmi_vectors(tokens: np.ndarray, token_counts: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Vectors that are alike where tokens have the same neighbours.

    The positive pointwise mutual information of a token with the one before it and the one after it, cut to its largest
    singular values, their square roots in the vectors (Levy, Goldberg and Dagan, "Improving Distributional Similarity
    with Lessons Learned from Word Embeddings", TACL 2015). They are turned at random, so that no feature says more than
    another.

    Args:
        tokens: [N, L] ids; neighbours are counted within a row, in the first rows of a long text.
        token_counts: [V], of the text; a token at zero, as special ones are, is nobody's neighbour.
        size: columns.
        seed: of the turn.

    Returns:
        [V, size] float32 with a mean square of one; zeros for a token without neighbours.
    """
    from scipy import sparse
    from sklearn.utils.extmath import randomized_svd

    V = len(token_counts)
    tokens_NL = np.asarray(tokens[: max(1, _MOST_TOKENS // tokens.shape[1])]).astype(np.int64)
    first, second = tokens_NL[:, :-1].ravel(), tokens_NL[:, 1:].ravel()
    kept = (token_counts[first] > 0) & (token_counts[second] > 0)
    pairs, counts = np.unique(first[kept] * V + second[kept], return_counts=True)
    first, second = np.divmod(pairs, V)

    def information(token: np.ndarray, neighbour: np.ndarray) -> sparse.csr_matrix:
        of_token, of_neighbour = (np.bincount(ids, counts, V) for ids in (token, neighbour))
        weight = of_neighbour**_SMOOTHING
        nats = np.log(counts / of_token[token] * weight.sum() / weight[neighbour])
        return sparse.csr_matrix((np.maximum(nats, 0), (token, neighbour)), (V, V))

    both = sparse.hstack([information(second, first), information(first, second)], "csr")
    both.eliminate_zeros()
    vectors_Vd = np.zeros((V, size))
    if both.nnz:
        u_Vr, s_r, _ = randomized_svd(both, min(size, V), n_iter=_POWER_ITERATIONS, random_state=0)
        vectors_Vd[:, : len(s_r)] = u_Vr * np.sqrt(s_r)
        turn_dd, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))
        vectors_Vd = vectors_Vd @ turn_dd
        alone = np.diff(both.indptr) == 0
        vectors_Vd[alone] = 0
        vectors_Vd /= np.sqrt((vectors_Vd[~alone] ** 2).mean())
    return vectors_Vd.astype(np.float32)
