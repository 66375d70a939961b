"""The C++ kernels against the float64 reference, over drawn shapes and values."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lookupffn import build_ffn
from lookupffn.ops import hash_scores, lookup, weighted_gather
from lookupffn.ops.hash import nearest_codes

pytestmark = pytest.mark.usefixtures("kernels")

LARGEST_TABLES = 150_000  # elements, so that the suite stays quick
tokens = st.one_of(st.integers(0, 70), st.sampled_from([127, 400]))


def relative_error(got, expected):
    return ((got.double() - expected).norm() / expected.norm().clamp_min(1e-300)).item()


def summed_magnitudes(double, x):
    """What the terms of each sum add up to without their signs: rounding is relative to that.

    An output of one number may be ten thousand times smaller than its terms.
    """
    with torch.no_grad():
        codes, scores = hash_scores(double.hash_inputs(x), double.options.num_probes)
        return weighted_gather(double.table.abs(), codes, scores.abs()) + double.bias.abs()


def decided(z, num_probes, tolerance=1e-5):
    """Tokens [M] none of whose bits, and none of whose choices among probes, depends on a rounding error of z."""
    far = z.abs().flatten(1).amin(1) > tolerance
    if num_probes > 1:
        mass = nearest_codes(z, min(num_probes + 1, 1 << z.shape[-1]))[1]
        far &= (mass.diff(dim=-1) > tolerance).flatten(1).all(1)
    return far


@st.composite
def feed_forwards(draw):
    d = draw(st.one_of(st.integers(2, 100), st.sampled_from([128, 200, 257, 512])))
    tau = draw(st.one_of(st.integers(1, 9), st.sampled_from([11, 16])))
    most = max(1, LARGEST_TABLES // (d << tau))
    block = 1 << draw(st.integers(0, d.bit_length() - 1))
    return {
        "hidden_size": d,
        "num_tables": draw(st.integers(1, min(40, most))),
        "table_size": 1 << tau,
        "projection": draw(st.sampled_from(["bh4", "bh4", "dense"])),
        "block_size": min(block, 128),
        "alpha": draw(st.sampled_from([0.0, 0.7, 1.0])),
        "num_probes": draw(st.integers(1, min(4, 1 << tau))),
    }


def module_and_double(options):
    ffn = build_ffn("lookup", **options)
    torch.nn.init.normal_(ffn.projection_bias)
    return ffn, copy.deepcopy(ffn).double()


@pytest.mark.slow
@settings(max_examples=180)
@given(options=feed_forwards(), M=tokens, strided=st.booleans())
def test_inference(options, M, strided):
    ffn, double = module_and_double(options)
    x = torch.randn(options["hidden_size"], M).T if strided else torch.randn(M, options["hidden_size"])
    with torch.no_grad():
        y, expected, z = ffn(x), double(x.double()), double.hash_inputs(x.double())
    assert y.shape == expected.shape and y.dtype == torch.float32
    far = decided(z, options["num_probes"])
    if far.any():
        assert (y[far] - expected[far]).norm() < 1e-5 * summed_magnitudes(double, x.double()[far]).norm()


@settings(max_examples=60)
@given(options=feed_forwards(), M=st.integers(1, 60))
def test_training(options, M):
    ffn, double = module_and_double(options)
    x = torch.randn(M, options["hidden_size"])
    with torch.no_grad():
        x = x[decided(double.hash_inputs(x.double()), options["num_probes"])]
    if not len(x):
        return
    upstream = torch.randn_like(x)
    gradients = {}
    for module in (ffn, double):
        dtype = module.bias.dtype
        inputs = x.to(dtype).requires_grad_()
        y = module(inputs)
        gradients[module] = (y, *torch.autograd.grad(y, [inputs, *module.parameters()], upstream.to(dtype)))
    for got, expected in zip(gradients[ffn], gradients[double], strict=True):
        assert relative_error(got, expected) < 1e-4
    assert relative_error(gradients[ffn][0], gradients[double][0]) < 1e-5


@pytest.mark.slow
@settings(max_examples=280)
@given(
    M=tokens,
    T=st.integers(1, 9),
    tau=st.integers(1, 10),
    N=st.integers(1, 4),
    d=st.integers(1, 150),
    scale=st.sampled_from([1e-3, 1.0, 30.0, 1e4]),
)
def test_lookup_and_its_gradients_at_any_scale(M, T, tau, N, d, scale):
    N = min(N, 1 << tau)
    z, table = scale * torch.randn(M, T, tau), torch.randn(T, 1 << tau, d)
    z = z[decided(z.double(), N, 1e-6 * scale)]
    upstream = torch.randn(len(z), d)
    results = []
    for dtype in (torch.float32, torch.float64):
        inputs = [t.to(dtype).requires_grad_() for t in (z, table)]
        y = lookup(*inputs, N)
        results.append((y, *torch.autograd.grad(y, inputs, upstream.to(dtype))))
    for got, expected in zip(*results, strict=True):
        assert torch.isfinite(got).all()
        # a table gradient may be a denormal everywhere, where all scores are
        assert torch.allclose(got.double(), expected, rtol=1e-4, atol=1e-4 * expected.abs().mean().nan_to_num().item())


def test_one_number_of_terms_that_cancel():
    """28 terms that add up to a ten-thousandth of their size.

    Off by a thousandth of the sum, as the float32 reference is: less than a unit in the last place of the terms.
    """
    generator = torch.Generator().manual_seed(132)
    z, table = torch.randn(1, 7, 13, generator=generator), torch.randn(7, 8192, 1, generator=generator)
    y, expected = lookup(z, table, 4), lookup(z.double(), table.double(), 4)
    codes, scores = hash_scores(z.double(), 4)
    terms = weighted_gather(table.double().abs(), codes, scores)
    assert terms > 10_000 * expected.abs()
    assert (y - expected).abs() < 2**-23 * terms


def test_few_tokens_hang_on_rounding():
    ffn, double = module_and_double({"hidden_size": 256, "num_probes": 1})
    x = torch.randn(4000, 256)
    with torch.no_grad():
        y, expected = ffn(x), double(x.double())
        far = decided(double.hash_inputs(x.double()), 1)
    differ = (y - expected).norm(dim=1) > 1e-5 * expected.norm(dim=1)
    assert not (differ & far).any()
    assert (~far).sum() < 40  # of 4,000 tokens with 512 hash inputs each


@pytest.mark.parametrize("block_size", [32, 64, 128])
@pytest.mark.parametrize("hidden_size", [250, 1000])
def test_bh4_as_it_stands(hidden_size, block_size):
    """With a form prepared beforehand."""
    options = {"hidden_size": hidden_size, "num_tables": 40, "table_size": 64, "block_size": block_size}
    ffn, double = module_and_double(options)
    x = torch.randn(1040, hidden_size)
    weight, alpha = ffn.projection, ffn.options.alpha
    with torch.no_grad():
        y = torch.ops.lookupffn.lookup_ffn(
            x,
            weight,
            ffn.projection_bias,
            ffn.table,
            None,
            ffn.bias,
            alpha,
            ffn.options.num_probes,
            torch.ops.lookupffn.fold_projection(weight, alpha),
        )
        expected, z = double(x.double()), double.hash_inputs(x.double())
    far = decided(z, ffn.options.num_probes)
    assert far.sum() > 500 and relative_error(y[far], expected[far]) < 1e-5


@settings(max_examples=30)
@given(options=feed_forwards(), M=st.sampled_from([96, 200, 513, 1100]), seed=st.integers(0, 99))
def test_tokens_of_any_magnitude(options, M, seed):
    """A projection in fixed point (int8 matrix tiles) is as good as one in float32, each token by itself."""
    generator = torch.Generator().manual_seed(seed)
    ffn, double = module_and_double(options)
    d = options["hidden_size"]
    scale = 10 ** (-4 * torch.rand(M, 1, generator=generator))
    x = scale * torch.randn(M, d, generator=generator)
    x[:, 0] *= 30  # a channel that dwarfs the others, as trained encoders have
    x[5], x[6, d // 2], x[7, -1] = 0, torch.nan, torch.inf
    with torch.no_grad():
        y, expected, z = ffn(x), double(x.double()), double.hash_inputs(x.double())
    assert y[6].isnan().all() and not y[7].isfinite().all()
    ordinary = torch.tensor([t for t in range(M) if t not in (6, 7)])
    assert y[ordinary].isfinite().all()
    far = ordinary[decided(z[ordinary], options["num_probes"])]
    if len(far):
        assert relative_error(y[far], expected[far]) < 1e-5


@pytest.mark.parametrize("projection", ["bh4", "dense"])
@pytest.mark.parametrize("M", [1, 5, 40, 1100])
def test_half_precision_and_int8(projection, M):
    ffn = build_ffn("lookup", hidden_size=96, projection=projection, num_tables=40, num_probes=1).eval()
    half = copy.deepcopy(ffn).bfloat16()
    double = copy.deepcopy(half).double()
    x = torch.randn(M, 96).bfloat16()
    with torch.no_grad():
        y, expected = half(x), double(x.double())
        assert y.dtype == torch.bfloat16
        far = decided(double.hash_inputs(x.double()), 1, 1e-3)
        assert relative_error(y[far], expected[far]) < 2e-2
        exact = ffn(x.float())
        ffn.quantize_tables()
        assert relative_error(ffn(x.float()), exact.double()) < 1e-2
        loaded = build_ffn(
            "lookup", hidden_size=96, projection=projection, num_tables=40, num_probes=1, table_type="int8"
        )
        loaded.load_state_dict(ffn.state_dict())
        assert torch.equal(loaded(x.float()), ffn(x.float()))


@pytest.mark.parametrize("M", [1, 33, 900])
@pytest.mark.parametrize("num_probes", [1, 2, 4])
def test_nan_in_nan_out_and_nowhere_else(M, num_probes):
    ffn = build_ffn("lookup", hidden_size=48, num_probes=num_probes)
    x = torch.randn(M, 48)
    x[M // 2, 7] = float("nan")
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            bad = ffn(x).isnan()
        assert bad[M // 2].all() and bad.sum() == 48


def test_extreme_inputs_stay_in_bounds():
    ffn = build_ffn("lookup", hidden_size=48, num_probes=4)
    for value in (0.0, 1e-38, 1e4, -1e18, 3e38, float("inf"), float("-inf")):
        with torch.no_grad():
            y = ffn(torch.full((40, 48), value))
        assert y.shape == (40, 48)
        if abs(value) <= 1e4:
            assert torch.isfinite(y).all()


def test_more_probes_than_the_kernels_keep_are_correct():
    ffn, double = module_and_double({"hidden_size": 32, "table_size": 16, "num_probes": 7})
    x = torch.randn(20, 32)
    with torch.no_grad():
        far = decided(double.hash_inputs(x.double()), 7)
        assert relative_error(ffn(x)[far], double(x.double())[far]) < 1e-5
