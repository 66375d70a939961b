"""What test_amx.py runs on a build whose AMX instructions are emulated: the tile kernels against the references."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lookupffn import build_ffn
from lookupffn.inference.native import LIBRARY, served_levels
from tests.inference.test_optimize import batch, model
from tests.ops.lookup_ffn.test_int8 import decided as decided_in_int8
from tests.ops.lookup_ffn.test_int8 import prepared_and_double
from tests.ops.lookup_ffn.test_kernels import decided, module_and_double, relative_error, summed_magnitudes

shapes = st.fixed_dictionaries(
    {
        "hidden_size": st.sampled_from([24, 64, 100, 192]),
        "num_tables": st.integers(1, 24),
        "table_size": st.sampled_from([4, 64, 256]),
        "num_probes": st.integers(1, 3),
        "projection": st.sampled_from(["bh4", "dense"]),
        "block_size": st.sampled_from([2, 16]),
    }
)


def test_the_build_has_tiles(kernels):
    assert LIBRARY.available() and served_levels()[-1] == "amx"


@settings(max_examples=15)
@given(options=shapes, M=st.sampled_from([1, 7, 16, 33, 130]))
def test_int8_layer(options, M):
    function, double = prepared_and_double(options)
    x = torch.randn(M, options["hidden_size"])
    with torch.no_grad():
        y, expected, far = function(x), double(x.double()), decided_in_int8(double, x.double())
    assert y.isfinite().all()
    if far.any():
        assert relative_error(y[far], expected[far]) < 0.05


@settings(max_examples=15)
@given(options=shapes, M=st.sampled_from([96, 101, 300]))
def test_float32_by_digits(options, M):
    ffn, double = module_and_double(options)
    x = torch.randn(M, options["hidden_size"])
    with torch.no_grad():
        ffn(x)  # digits are made at the second use
        y, expected, z = ffn(x), double(x.double()), double.hash_inputs(x.double())
    far = decided(z, options["num_probes"])
    if far.any():
        assert (y[far] - expected[far]).norm() < 1e-5 * summed_magnitudes(double, x.double()[far]).norm()


@pytest.mark.parametrize("dtype,M,block_size", [(torch.bfloat16, 130, 64), (torch.float32, 1030, 32)])
def test_bh4_on_tiles(kernels, dtype, M, block_size):
    """In float32 multiplying out would not pay for these blocks: BH4 runs in three bfloat16 parts."""
    options = {"hidden_size": 512, "num_tables": 128, "table_size": 16, "block_size": block_size, "num_probes": 1}
    ffn = build_ffn("lookup", **options).to(dtype)
    double = copy.deepcopy(ffn).double()
    x = torch.randn(M, 512, dtype=dtype)
    with torch.no_grad():
        y, expected, z = ffn(x), double(x.double()), double.hash_inputs(x.double())
    far = decided(z, 1, 1e-5 if dtype is torch.float32 else 1e-3)
    assert far.any() and relative_error(y[far], expected[far]) < (1e-5 if dtype is torch.float32 else 0.01)


@pytest.mark.parametrize("ffn", ["gemm", "lookup"])
def test_encoder_gives_the_numbers_of_the_plain_kernel(kernels, monkeypatch, ffn):
    options = {"name": ffn} | ({"num_tables": 24, "projection": "dense"} if ffn == "lookup" else {})
    plain = model(ffn=options)
    results = []
    for shape in ((1, 9), (4, 60)):
        ids, mask = batch(shape)
        for level in ("plain", "amx"):
            monkeypatch.setenv("LOOKUPFFN_INT8", level)
            fast = copy.deepcopy(plain).optimize_for_inference("int8")
            results.append(fast(ids, attention_mask=mask).last_hidden_state[mask.bool()])
        torch.testing.assert_close(results[-1], results[-2], rtol=1e-5, atol=1e-5)
