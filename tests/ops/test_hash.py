import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lookupffn.ops import hash_scores, nearest_codes


def transcription(z, num_probes):
    """The softmax over all sign vectors written out; the largest terms, largest first. z [M, T, tau] float64."""
    tau = z.shape[-1]
    codes = torch.arange(1 << tau)
    signs = (((codes[:, None] >> torch.arange(tau)) & 1) * 2 - 1).to(z.dtype)  # bit set where positive
    inner = z @ signs.T
    probability = inner.softmax(-1)
    kept = probability.topk(num_probes, dim=-1).indices
    return kept, (inner * probability).gather(-1, kept)


shapes = st.tuples(st.integers(0, 5), st.integers(1, 4), st.integers(1, 9))


@given(shape=shapes, scale=st.sampled_from([0.01, 1.0, 10.0]), data=st.data())
def test_matches_the_softmax_over_all_codes(shape, scale, data):
    z = scale * torch.randn(shape, dtype=torch.float64)
    num_probes = data.draw(st.integers(1, min(1 << shape[-1], 40)))
    codes, scores = hash_scores(z, num_probes)
    expected_codes, expected_scores = transcription(z, num_probes)
    assert codes.dtype == torch.int32
    assert torch.equal(codes.long(), expected_codes)
    assert torch.allclose(scores, expected_scores, rtol=1e-9, atol=1e-14)


@given(shape=shapes, data=st.data())
def test_softmax_over_the_kept_codes(shape, data):
    z = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    num_probes = data.draw(st.integers(1, min(1 << shape[-1], 8)))
    codes, scores = hash_scores(z, num_probes, "kept")
    signs = ((codes.unsqueeze(-1) >> torch.arange(shape[-1])) & 1) * 2.0 - 1
    inner = (signs * z.unsqueeze(-2)).sum(-1)
    assert torch.equal(codes, hash_scores(z, num_probes)[0])
    assert torch.allclose(scores, inner * inner.softmax(-1), rtol=1e-9, atol=1e-14)
    scores.sum().backward()
    assert torch.isfinite(z.grad).all()


def test_unknown_normaliser():
    with pytest.raises(ValueError, match="normaliser"):
        hash_scores(torch.zeros(1, 1, 2), 1, "some")


def test_all_terms_of_the_softmax_can_be_kept():
    z = torch.randn(7, 2, 6, dtype=torch.float64)
    codes, scores = hash_scores(z, 64)
    assert torch.equal(codes.sort(-1).values, torch.arange(64, dtype=torch.int32).expand(7, 2, 64))
    assert torch.allclose(scores, transcription(z, 64)[1])


def test_single_probe_is_the_papers_score():
    z = torch.randn(11, 3, 8, dtype=torch.float64)
    codes, scores = hash_scores(z, 1)
    a = z.abs()
    assert torch.allclose(scores[..., 0], a.sum(-1) / (1 + torch.exp(-2 * a)).prod(-1))
    assert (scores >= 0).all()
    bits = (codes >> torch.arange(8, dtype=torch.int32)) & 1
    assert torch.equal(bits.bool(), z > 0)


@pytest.mark.parametrize(("tau", "num_probes"), [(1, 1), (1, 2), (5, 1), (5, 2), (4, 3), (3, 4), (4, 16), (8, 7)])
def test_gradients(tau, num_probes):
    # away from the hyperplanes, where the choice of codes changes and no derivative exists
    z = torch.randn(4, 3, tau, dtype=torch.float64)
    distinct = 0.3 + 0.37 * torch.arange(tau) + 0.05 * torch.rand(4, 3, tau, dtype=torch.float64)
    z = (distinct * z.sign()).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: hash_scores(t, num_probes)[1], z)


def test_two_probes_are_continuous_across_a_hyperplane():
    z = torch.randn(1, 1, 8, dtype=torch.float64)
    table = torch.randn(256, dtype=torch.float64)

    def value(z0):
        z[..., 3] = z0
        codes, scores = hash_scores(z, 2)
        return (scores * table[codes.long()]).sum()

    assert value(1e-9) == pytest.approx(value(-1e-9).item(), abs=1e-7)


def test_codes_are_exact_under_autocast_and_for_long_codes():
    z = torch.randn(50, 3, 16)
    expected = ((z > 0).long() << torch.arange(16)).sum(-1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        codes, _ = nearest_codes(z, 1)
    assert torch.equal(codes[..., 0].long(), expected)


def test_extreme_inputs():
    for value in itertools.chain([0.0, 1e4, -1e4, 1e30]):
        z = torch.full((1, 1, 4), value)
        z.requires_grad_()
        scores = hash_scores(z, 2)[1]
        scores.sum().backward()
        assert torch.isfinite(scores).all() and torch.isfinite(z.grad).all()
    assert hash_scores(torch.full((1, 1, 4), float("nan")), 2)[1].isnan().all()


@pytest.mark.parametrize("num_probes", [0, -1, 17])
def test_refuses_probes_out_of_range(num_probes):
    with pytest.raises(ValueError, match="num_probes"):
        hash_scores(torch.zeros(1, 1, 4), num_probes)
