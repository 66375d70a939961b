import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lookupffn.ops import weighted_gather


def transcription(table, codes, scores):
    y = torch.zeros(codes.shape[0], table.shape[2], dtype=table.dtype)
    for m in range(codes.shape[0]):
        for k in range(codes.shape[1]):
            for n in range(codes.shape[2]):
                y[m] = y[m] + scores[m, k, n] * table[k, codes[m, k, n]]
    return y


def draw(M, T, N, S, d, dtype=torch.float64):
    table = torch.randn(T, S, d, dtype=dtype, requires_grad=True)
    scores = torch.randn(M, T, N, dtype=dtype, requires_grad=True)
    return table, torch.randint(0, S, (M, T, N), dtype=torch.int32), scores


@given(
    M=st.integers(0, 9), T=st.integers(1, 5), N=st.integers(1, 3), S=st.sampled_from([2, 4, 32]), d=st.integers(1, 33)
)
def test_forward_and_gradients_match_the_formula(M, T, N, S, d):
    table, codes, scores = draw(M, T, N, S, d)
    y, expected = weighted_gather(table, codes, scores), transcription(table, codes, scores)
    assert torch.allclose(y, expected)
    if M == 0:
        return
    upstream = torch.randn_like(y)
    got = torch.autograd.grad(y, (table, scores), upstream)
    wanted = torch.autograd.grad(expected, (table, scores), upstream)
    for a, b in zip(got, wanted, strict=True):
        assert torch.allclose(a, b)


def test_gradcheck():
    table, codes, scores = draw(6, 3, 2, 4, 5)
    assert torch.autograd.gradcheck(lambda t, s: weighted_gather(t, codes, s), (table, scores))


def test_gradients_are_the_same_to_the_bit_every_time():
    table, codes, scores = draw(500, 4, 2, 8, 16, torch.float32)
    runs = [
        torch.autograd.grad(weighted_gather(table, codes, scores).square().sum(), (table, scores)) for _ in range(3)
    ]
    for run in runs[1:]:
        assert torch.equal(run[0], runs[0][0]) and torch.equal(run[1], runs[0][1])


def test_no_tensor_of_size_tokens_by_tables_by_hidden(monkeypatch):
    M, T, d = 2048, 64, 256
    table, codes, scores = draw(M, T, 1, 16, d, torch.float32)
    limit = M * T * d // 4
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for t in out if isinstance(out, tuple | list) else (out,):
                if isinstance(t, torch.Tensor):
                    largest = max(largest, t.numel())
            return out

    with Watch():
        weighted_gather(table, codes, scores).sum().backward()
    assert 0 < largest < limit


@pytest.mark.parametrize("code", [-1, 4, 2**31 - 1])
def test_refuses_codes_out_of_range(code):
    table, codes, scores = draw(3, 2, 1, 4, 5)
    codes[1, 1, 0] = code
    with pytest.raises(ValueError, match=r"codes must lie in \[0, 4\)"):
        weighted_gather(table, codes, scores)


def test_refuses_shapes_that_do_not_fit():
    table, codes, scores = draw(3, 2, 1, 4, 5)
    with pytest.raises(ValueError, match="do not fit"):
        weighted_gather(table[:1], codes, scores)
    with pytest.raises(ValueError, match="differ in shape"):
        weighted_gather(table, codes, scores[:2])
