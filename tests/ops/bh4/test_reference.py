import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lookupffn.ops import bh4
from tests.ops.test_hadamard import sylvester


def transcription(x, weight):
    """The formula with dense matrices: four times block-diagonal, then the whole Hadamard matrix."""
    r, factors, blocks, b, _ = weight.shape
    size = blocks * b
    padded = torch.zeros(x.shape[0], size, dtype=x.dtype)
    padded[:, : x.shape[1]] = x
    outputs = []
    for copy in range(r):
        h = padded
        for factor in range(factors):
            h = h @ torch.block_diag(*weight[copy, factor]) @ sylvester(size)
        outputs.append(h)
    return torch.cat(outputs, 1)


@given(
    r=st.integers(1, 3),
    log2_blocks=st.integers(0, 5),
    log2_b=st.integers(0, 4),
    tokens=st.integers(0, 6),
    data=st.data(),
)
def test_matches_the_formula(r, log2_blocks, log2_b, tokens, data):
    blocks, b = 1 << log2_blocks, 1 << log2_b
    d = data.draw(st.integers(1, blocks * b))
    x = torch.randn(tokens, d, dtype=torch.float64)
    weight = torch.randn(r, 4, blocks, b, b, dtype=torch.float64)
    expected = transcription(x, weight)
    assert torch.allclose(
        bh4(x, weight), expected, rtol=1e-10, atol=1e-10 * (1 + expected.abs().max().item() if tokens else 1)
    )


def test_gradients():
    x = torch.randn(3, 13, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 4, 4, 4, 4, dtype=torch.float64, requires_grad=True) / 2
    assert torch.autograd.gradcheck(bh4, (x, weight))


def test_isometric_blocks_keep_the_norm():
    x = torch.randn(500, 256)
    y = bh4(x, torch.randn(1, 4, 16, 16, 16) / 4)
    assert y.norm() / x.norm() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("shape", [(1, 3, 2, 4, 4), (1, 4, 2, 4, 8), (4, 2, 4, 4)])
def test_refuses_a_weight_of_another_shape(shape):
    with pytest.raises(ValueError, match="BH4 weight"):
        bh4(torch.zeros(2, 8), torch.zeros(shape))


def test_refuses_inputs_too_wide():
    with pytest.raises(ValueError, match="at most 8"):
        bh4(torch.zeros(2, 9), torch.zeros(1, 4, 2, 4, 4))
