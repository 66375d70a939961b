import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lookupffn.ops import hadamard_matrix, hadamard_transform


def sylvester(n):
    """Entry (i, j) is (-1)^popcount(i & j) / sqrt(n)."""
    return torch.tensor([[(-1.0) ** (i & j).bit_count() for j in range(n)] for i in range(n)]).double() / n**0.5


@pytest.mark.parametrize("n", [1, 2, 8, 64, 256])
def test_matrix_is_sylvesters_and_orthonormal(n):
    h = hadamard_matrix(n, torch.float64)
    assert torch.allclose(h, sylvester(n))
    assert torch.allclose(h @ h.T, torch.eye(n, dtype=torch.float64))


@given(log2=st.integers(0, 8), dim=st.integers(-3, 2), others=st.tuples(st.integers(0, 5), st.integers(1, 5)))
def test_transform_is_the_matrix_along_any_dimension(log2, dim, others):
    shape = list(others)
    shape.insert(dim % 3, 1 << log2)
    x = torch.randn(shape, dtype=torch.float64)
    expected = torch.movedim(torch.movedim(x, dim, -1) @ sylvester(1 << log2), -1, dim)
    assert torch.allclose(hadamard_transform(x, dim), expected, atol=1e-12)


def test_transform_differentiates():
    x = torch.randn(3, 64, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: hadamard_transform(t, 1), x)


@pytest.mark.parametrize("n", [0, 3, 12])
def test_refuses_what_is_no_power_of_two(n):
    with pytest.raises(ValueError, match="power of two"):
        hadamard_matrix(n)
    with pytest.raises(ValueError, match="power of two"):
        hadamard_transform(torch.zeros(2, n))


def test_matrix_made_in_inference_mode_can_train_later():
    with torch.inference_mode():
        hadamard_transform(torch.randn(2, 128), -1)
    x = torch.randn(2, 128, requires_grad=True)
    hadamard_transform(x).sum().backward()
    assert x.grad is not None
