"""The kernels as torch operators: registration, compile, export, errors, determinism."""

import copy

import pytest
import torch
from torch.library import opcheck

from lookupffn import UserError, build_ffn
from lookupffn.ops import lookup
from lookupffn.ops.bh4.cpu import fold

pytestmark = pytest.mark.usefixtures("kernels")


def ops():
    return torch.ops.lookupffn


@pytest.mark.slow
def test_opcheck():
    z, table = torch.randn(20, 15, requires_grad=True), torch.randn(5, 8, 12, requires_grad=True)
    opcheck(ops().lookup_forward.default, (z, table, 2, 48))
    y, codes, scores = (t.detach() for t in ops().lookup_forward(z, table, 2, 48))
    opcheck(ops().lookup_backward.default, (y, z.detach(), table.detach(), codes, scores, 2, True, True))
    x, weight = torch.randn(9, 32, requires_grad=True), torch.randn(2, 4, 2, 16, 16, requires_grad=True)
    bias = torch.randn(40, requires_grad=True)
    opcheck(ops().bh4_forward.default, (x, weight, bias, 0.3, 32))
    plain = [t.detach() for t in (x, weight, bias)]
    opcheck(ops().bh4_backward.default, (torch.randn(9, 40), plain[0], plain[1], plain[1].mT.contiguous(), 0.3, 32))
    tables, out = torch.randn(5, 256, 32), torch.randn(32)
    opcheck(ops().lookup_ffn.default, (*plain, tables, None, out, 0.7, 2))
    opcheck(ops().lookup_ffn.default, (plain[0], torch.randn(40, 32), plain[2], tables, None, out, 1.0, 1))


def test_the_fast_path_is_taken(monkeypatch):
    ffn = build_ffn("lookup", hidden_size=32)
    x = torch.randn(5, 32)
    with torch.no_grad():
        monkeypatch.setenv("LOOKUPFFN_BACKEND", "cpu")
        fast = ffn(x)
        monkeypatch.setenv("LOOKUPFFN_BACKEND", "reference")
        assert torch.allclose(ffn(x), fast, atol=1e-6)
        monkeypatch.setenv("LOOKUPFFN_BACKEND", "cpu")
        with pytest.raises(UserError, match=r"LOOKUPFFN_BACKEND=cpu cannot run bh4_mix here \(x is torch.float64"):
            copy.deepcopy(ffn).double()(x.double())


def test_compile_and_export():
    ffn = build_ffn("lookup", hidden_size=32)
    x = torch.randn(6, 32)
    compiled = torch.compile(ffn, backend="aot_eager", fullgraph=True)
    expected = torch.autograd.grad(ffn(x).square().sum(), list(ffn.parameters()))
    got = torch.autograd.grad(compiled(x).square().sum(), list(ffn.parameters()))
    for a, b in zip(got, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    with torch.no_grad():
        exported = torch.export.export(ffn.eval(), (x,)).module()
        assert torch.allclose(exported(x), ffn(x), atol=1e-6)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_bits_every_time(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ffn = build_ffn("lookup", hidden_size=80)
        x = torch.randn(2500, 80, requires_grad=True)
        runs = [torch.autograd.grad(ffn(x).square().sum(), [x, *ffn.parameters()]) for _ in range(3)]
        with torch.no_grad():
            outputs = [ffn(x) for _ in range(3)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True))
    assert all(torch.equal(y, outputs[0]) for y in outputs)


def test_gradients_accumulate_and_memory_is_not_shared():
    # large enough for the pool of gradient memory
    table = torch.randn(33, 256, 512, requires_grad=True)
    z = torch.randn(10, 33, 8)
    first = torch.autograd.grad(lookup(z, table, 1).sum(), table)[0]
    kept = first.clone()
    second = torch.autograd.grad(lookup(z, table, 2).square().sum(), table)[0]
    assert torch.equal(first, kept) and not torch.equal(first, second)


def arguments():
    x, weight, bias = torch.randn(9, 32), torch.randn(2, 4, 2, 16, 16), torch.randn(40)
    return [x, weight, bias, torch.randn(5, 256, 32), None, torch.randn(32), 0.7, 2]


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (0, torch.randn(9, 33)),
        (0, torch.randn(9, 32).double()),
        (0, torch.randn(32, 9).T),
        (0, torch.randn(9)),
        (1, torch.randn(2, 4, 2, 16, 15)),
        (1, torch.randn(2, 3, 2, 16, 16)),
        (1, torch.randn(1, 4, 2, 16, 16)),
        (1, torch.randn(2, 4, 1, 16, 16)),
        (1, torch.randn(2, 4, 3, 12, 12)),
        (1, torch.randn(2, 4, 2, 16, 16).double()),
        (1, torch.randn(40, 31)),
        (2, torch.randn(39)),
        (3, torch.randn(5, 255, 32)),
        (3, torch.randn(5, 256, 33)),
        (3, torch.randn(6, 256, 32)),
        (3, torch.zeros(5, 256, 32, dtype=torch.int32)),
        (3, torch.zeros(5, 256, 32, dtype=torch.int8)),
        (4, torch.ones(5, 256)),
        (5, torch.randn(31)),
        (7, 0),
        (7, 5),
        (0, torch.empty(9, 32, device="meta")),
    ],
)
def test_bad_arguments_are_python_errors(index, value):
    given = arguments()
    ops().lookup_ffn(*given)
    given[index] = value
    with pytest.raises((RuntimeError, NotImplementedError)):
        result = ops().lookup_ffn(*given)
        assert result.device.type == "meta"
        raise RuntimeError("a meta tensor runs the fake kernel")


@pytest.mark.parametrize("wrong", [torch.randn(2, 4, 2, 16, 15), torch.randn(2, 4, 2, 16, 16).double()])
def test_bad_folded_weights_are_python_errors(wrong):
    with pytest.raises(RuntimeError, match="folded"):
        ops().lookup_ffn(*arguments(), wrong)


@pytest.mark.parametrize("block", [1, 4, 16, 32])
def test_folded_as_in_training(block):
    weight = torch.randn(3, 4, 32 // block, block, block)
    assert torch.allclose(ops().fold_projection(weight, 0.7), fold(weight, 0.7), atol=1e-6)


@pytest.mark.parametrize("projection", ["bh4", "dense"])
@pytest.mark.parametrize("d", [50, 64])
def test_multiplied_out(projection, d):
    ffn = build_ffn("lookup", hidden_size=d, num_tables=40, table_size=16, projection=projection)
    x = torch.randn(7, d)
    with torch.no_grad():
        z = x @ ops().multiply_out_projection(ffn.projection, ffn.options.alpha, 160, d).T
        assert torch.allclose(z.view(7, 40, 4), ffn.hash_inputs(x), atol=1e-5)


def test_export_for_any_number_of_tokens():
    ffn = build_ffn("lookup", hidden_size=64, block_size=16).eval()
    shapes = ({0: torch.export.Dim("tokens", min=2, max=8192)},)
    with torch.no_grad():
        exported = torch.export.export(ffn, (torch.randn(200, 64),), dynamic_shapes=shapes).module()
        for tokens in (7, 200):
            x = torch.randn(tokens, 64)
            assert torch.allclose(exported(x), ffn(x), atol=1e-5)


def test_codes_out_of_range_are_refused():
    z, table = torch.randn(20, 15), torch.randn(5, 8, 12)
    y, codes, scores = ops().lookup_forward(z, table, 2, 48)
    for bad in (-1, 8, 2**30):
        wrong = codes.clone()
        wrong[3, 7] = bad
        with pytest.raises(RuntimeError, match="codes out of range"):
            ops().lookup_backward(y, z, table, wrong, scores, 2, True, True)
    with pytest.raises(RuntimeError, match="scores"):
        ops().lookup_backward(y, z, table, codes, scores[:, :16].contiguous(), 2, True, True)
