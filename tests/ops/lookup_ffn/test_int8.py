"""A whole layer in int8 against float64: the rounding of its tables is the reference's, the rest is its own."""

import copy

import pytest
import torch
from hypothesis import given, settings

from lookupffn import UserError, build_ffn
from lookupffn.ops import nearest_codes
from tests.ops.lookup_ffn.test_kernels import feed_forwards, relative_error, tokens

pytestmark = pytest.mark.usefixtures("kernels")


def prepared_and_double(options):
    ffn = build_ffn("lookup", **options).eval()
    torch.nn.init.normal_(ffn.projection_bias)
    double = copy.deepcopy(ffn)
    double.quantize_tables()
    double.double()
    return ffn.prepared("int8"), double


def decided(double, x):
    """Tokens [M] none of whose codes changes by an error of 3% of a hash input's size, several times int8's."""
    z = double.hash_inputs(x)
    near = 0.03 * z.square().mean((1, 2), keepdim=True).sqrt().squeeze(-1)
    N = double.options.num_probes
    far = z.abs().amin((1, 2)) > near.squeeze(-1)
    if N > 1:
        mass = nearest_codes(z, min(N + 1, 1 << z.shape[-1]))[1]
        far &= (mass.diff(dim=-1) > 2 * near.unsqueeze(-1)).flatten(1).all(1)
    return far


@pytest.mark.slow
@settings(max_examples=120)
@given(options=feed_forwards(), M=tokens)
def test_any_shape(options, M):
    function, double = prepared_and_double(options)
    x = torch.randn(M, options["hidden_size"])
    with torch.no_grad():
        y, expected, far = function(x), double(x.double()), decided(double, x.double())
    assert y.shape == expected.shape and y.dtype == torch.float32 and y.isfinite().all()
    if far.any():
        assert relative_error(y[far], expected[far]) < 0.05


@pytest.mark.parametrize("block_size", [16, 64])
@pytest.mark.parametrize("M", [1, 5, 40, 600])
def test_codes_that_flip(block_size, M):
    """With BH4 in bfloat16 or float32 (blocks of 16) one in a hundred at most; multiplied out in int8 a few."""
    function, double = prepared_and_double({"hidden_size": 256, "block_size": block_size, "num_probes": 1})
    x = torch.randn(M, 256)
    with torch.no_grad():
        error = relative_error(function(x), double(x.double()))
    assert error < (0.15 if block_size == 16 else 0.3)


def test_a_batch_of_sequences_gradients_and_copies():
    ffn = build_ffn("lookup", hidden_size=64).eval()
    function, x = ffn.prepared("int8"), torch.randn(2, 9, 64)
    with torch.no_grad():
        assert torch.equal(function(x), function(x.view(18, 64)).view(2, 9, 64))
        assert relative_error(function(x), ffn(x).double()) < 0.3
    inputs = x.clone().requires_grad_()
    assert torch.autograd.grad(function(inputs).sum(), inputs)[0].abs().sum() > 0  # by the layer itself
    with pytest.raises(UserError, match="did you mean 'int8'"):
        ffn.prepared("int9")


def test_nan_in_nan_out_and_nowhere_else():
    for block_size in (16, 64):
        function, _ = prepared_and_double({"hidden_size": 128, "block_size": block_size})
        for M in (3, 200):
            x = torch.randn(M, 128)
            x[M // 2, 7] = float("nan")
            bad = function(x).isnan()
            assert bad[M // 2].all() and bad.sum() == 128


@pytest.mark.parametrize("M", [5, 200])
def test_extreme_inputs_stay_in_bounds(M):
    function, _ = prepared_and_double({"hidden_size": 128, "block_size": 64})
    for value in (0.0, 1e-38, 1e4, -1e18, 3e38, float("inf"), float("-inf")):
        y = function(torch.full((M, 128), value))
        assert y.shape == (M, 128) and (abs(value) > 1e4 or y.isfinite().all())


def test_the_same_bits_whatever_the_threads():
    function, _ = prepared_and_double({"hidden_size": 256, "block_size": 64})
    before = torch.get_num_threads()
    for M in (3, 700):
        x, results = torch.randn(M, 256), []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(function(x))
        torch.set_num_threads(before)
        assert all(torch.equal(y, results[0]) for y in results)


def test_an_unknown_handle_is_a_python_error():
    with pytest.raises(RuntimeError, match="no int8 layer"):
        torch.ops.lookupffn.lookup_int8(torch.randn(3, 4), 10**9)
