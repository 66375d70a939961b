"""bfloat16 and int8 tables: matrix tiles and float16 sums where the CPU has them, float32 where not."""

import copy
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lookupffn import build_ffn
from tests.ops.lookup_ffn.test_kernels import decided, relative_error

pytestmark = pytest.mark.usefixtures("kernels")

ROOT = Path(__file__).parents[3]
# enough tokens for every path: whole rows, slices, a tile of tokens not full
tokens = st.sampled_from([1, 15, 16, 63, 64, 65, 250, 801])


@st.composite
def feed_forwards(draw):
    d = draw(st.sampled_from([32, 64, 70, 96, 128, 257, 512]))
    tau = draw(st.sampled_from([1, 3, 4, 6, 8]))
    return {
        "hidden_size": d,
        "num_tables": draw(st.integers(1, max(1, min(40, 600_000 // (d << tau))))),
        "table_size": 1 << tau,
        "projection": draw(st.sampled_from(["bh4", "bh4", "bh4", "dense"])),
        "block_size": draw(st.sampled_from([b for b in (8, 16, 32, 64, 128) if b <= d])),
        "num_probes": draw(st.integers(1, min(4, 1 << tau))),
    }


def layer(options, magnitude=1.0):
    ffn = build_ffn("lookup", **options).eval()
    torch.nn.init.normal_(ffn.projection_bias)
    with torch.no_grad():
        ffn.table.mul_(magnitude)
    return ffn


def far_from_zero(double, x, num_probes):
    return decided(double.hash_inputs(x.double()), num_probes, 1e-3)


@settings(max_examples=100)
@given(options=feed_forwards(), M=tokens, magnitude=st.sampled_from([1e-6, 1.0, 1e4]))
def test_bfloat16(options, M, magnitude):
    half = layer(options, magnitude).bfloat16()
    double = copy.deepcopy(half).double()
    x = torch.randn(M, options["hidden_size"]).bfloat16()
    with torch.no_grad():
        y, expected, far = half(x), double(x.double()), far_from_zero(double, x, options["num_probes"])
    assert y.dtype == torch.bfloat16
    if far.any():
        # torch rounds the hash inputs of a dense projection, and with them the scores
        assert relative_error(y[far], expected[far]) < (2e-2 if options["projection"] == "dense" else 5e-3)


@settings(max_examples=100)
@given(options=feed_forwards(), M=tokens, magnitude=st.sampled_from([1e-6, 1.0, 1e4]))
def test_int8_tables(options, M, magnitude):
    ffn = layer(options, magnitude)
    ffn.quantize_tables()
    double = layer(options).double()
    state = {name: value.double() for name, value in ffn.state_dict().items()}
    state["table"] = state["table"] * state.pop("table_scales").unsqueeze(-1)
    double.load_state_dict(state)
    x = torch.randn(M, options["hidden_size"])
    with torch.no_grad():
        y, expected, far = ffn(x), double(x.double()), far_from_zero(double, x, options["num_probes"])
    assert y.dtype == torch.float32
    if far.any():
        assert relative_error(y[far], expected[far]) < 2e-3


@pytest.mark.parametrize("M", [33, 900])
@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_nan_in_nan_out_and_nowhere_else(M, kind):
    ffn = layer({"hidden_size": 128, "table_size": 16, "block_size": 32, "num_probes": 2})
    x = torch.randn(M, 128)
    if kind == "int8":
        ffn.quantize_tables()
    else:
        ffn, x = ffn.bfloat16(), x.bfloat16()
    x[M // 2, 7] = float("nan")
    with torch.no_grad():
        bad = ffn(x).isnan()
    assert bad[M // 2].all() and bad.sum() == 128


def test_nan_in_a_table_reaches_only_its_readers():
    ffn = layer({"hidden_size": 64, "num_tables": 3, "table_size": 16, "num_probes": 1}).bfloat16()
    with torch.no_grad():
        ffn.table[1, 5] = float("nan")
        x = torch.randn(500, 64).bfloat16()
        bad = ffn(x).isnan()
    assert (bad.all(1) == bad.any(1)).all() and 0 < bad.any(1).sum() < 250


@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_extreme_inputs_stay_in_bounds(kind):
    ffn = layer({"hidden_size": 128, "table_size": 16, "block_size": 32, "num_probes": 4})
    dtype = torch.float32
    if kind == "int8":
        ffn.quantize_tables()
    else:
        ffn, dtype = ffn.bfloat16(), torch.bfloat16
    for value in (0.0, 1e-38, 1e4, -1e18, 3e38, float("inf"), float("-inf")):
        with torch.no_grad():
            y = ffn(torch.full((100, 128), value, dtype=dtype))
        if abs(value) <= 1e4:
            assert torch.isfinite(y).all()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_bits_every_time(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ffn = layer({"hidden_size": 256, "table_size": 64}).bfloat16()
        x = torch.randn(1500, 256).bfloat16()
        with torch.no_grad():
            outputs = [ffn(x) for _ in range(3)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(y, outputs[0]) for y in outputs)


SCRIPT = """
import sys, torch
from lookupffn import build_ffn
torch.manual_seed(0)
outputs = []
for kind in ("bfloat16", "int8"):
    ffn = build_ffn("lookup", hidden_size=128, num_tables=16, table_size=16, block_size=32).eval()
    x = torch.randn(500, 128)
    if kind == "int8":
        ffn.quantize_tables()
    else:
        ffn, x = ffn.bfloat16(), x.bfloat16()
    with torch.no_grad():
        outputs.append(ffn(x).float())
torch.save(outputs, sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags are of x86 compilers")
def test_without_the_instructions(tmp_path):
    """The kernels built without instructions that this machine has agree with those built for it."""
    own = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    without = "-mno-amx-tile -mno-avx512fp16" if "amx_tile" in own else "-mno-avx512f"
    results = []
    for name, extra in (
        ("own", {}),
        ("other", {"LOOKUPFFN_CXXFLAGS": without, "LOOKUPFFN_CACHE": str(tmp_path)}),
    ):
        environment = {**os.environ, "LOOKUPFFN_BACKEND": "cpu", **extra}
        path = tmp_path / name
        subprocess.run([sys.executable, "-c", SCRIPT, str(path)], cwd=ROOT, env=environment, check=True, timeout=600)
        results.append(torch.load(path))
    for got, other in zip(*results, strict=True):
        differ = (got - other).norm(dim=1) > 1e-2 * other.norm(dim=1)
        assert differ.sum() <= 5  # tokens with a hash input of about zero
