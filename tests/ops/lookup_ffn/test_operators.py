"""The kernels as torch operators: registration, compile, export, errors, determinism, caching of folded weights."""

import copy

import pytest
import torch
from torch.library import opcheck

from lookupffn import UserError, build_ffn
from lookupffn.ops import lookup
from lookupffn.ops.bh4.cpu import fold
from lookupffn.ops.lookup_ffn.prepared import multiplied_out

pytestmark = pytest.mark.usefixtures("kernels")


def ops():
    return torch.ops.lookupffn


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
    opcheck(ops().lookup_ffn.default, (*plain, tables, None, out, 0.3, 32, 2))
    opcheck(ops().lookup_ffn.default, (plain[0], torch.randn(40, 32), plain[2], tables, None, out, 0.0, 0, 1))


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


def lookup_ffn_of_64():
    """One whose projection is multiplied out for many tokens, where the machine has tiles for it."""
    return build_ffn("lookup", hidden_size=64, block_size=16)


@pytest.mark.parametrize("M", [3, 100])
def test_folded_weights_follow_the_parameter(M):
    ffn = lookup_ffn_of_64().eval()
    x = torch.randn(M, 64)
    with torch.no_grad():
        before = ffn(x)
        ffn.projection[:, 0].mul_(-1)
        changed = ffn(x)
        assert not torch.allclose(before, changed)
        ffn.projection[:, 0].mul_(-1)
        assert torch.equal(ffn(x), before)
        assert torch.equal(copy.deepcopy(ffn)(x), before)
        ffn.load_state_dict(lookup_ffn_of_64().state_dict())
        fresh = lookup_ffn_of_64()
        fresh.load_state_dict(ffn.state_dict())
        assert torch.equal(ffn(x), fresh(x))
    with torch.inference_mode():
        inference = ffn(x)
    assert torch.equal(inference, ffn(x).detach()) or torch.allclose(inference, ffn(x), atol=1e-6)
    ffn(x).sum().backward()


@pytest.mark.parametrize("M", [5, 100])
@pytest.mark.parametrize("switch", [False, True])
def test_folded_weights_follow_a_fused_optimizer(switch, M):
    # its writes do not raise the parameters' version
    ffn = lookup_ffn_of_64()
    optimizer = torch.optim.AdamW(ffn.parameters(), lr=0.1, fused=True)
    x = torch.randn(M, 64)
    for _ in range(3):
        loss = ffn(x).square().sum()
        if switch:  # an evaluation between a forward and its update
            ffn.eval()
            with torch.no_grad():
                ffn(x)
            ffn.train()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if switch:
            ffn.eval()
        with torch.no_grad():
            assert torch.equal(ffn(x), copy.deepcopy(ffn)(x))
        ffn.train()


def arguments():
    x, weight, bias = torch.randn(9, 32), fold(torch.randn(2, 4, 2, 16, 16), 0.7), torch.randn(40)
    return [x, weight, bias, torch.randn(5, 256, 32), None, torch.randn(32), 0.3, 32, 2]


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (0, torch.randn(9, 31)),
        (0, torch.randn(9, 32).double()),
        (0, torch.randn(32, 9).T),
        (0, torch.randn(9)),
        (1, torch.randn(2, 4, 2, 16, 15)),
        (1, torch.randn(2, 3, 2, 16, 16)),
        (1, torch.randn(1, 4, 2, 16, 16)),
        (1, torch.randn(2, 4, 4, 8, 8)),
        (2, torch.randn(39)),
        (3, torch.randn(5, 255, 32)),
        (3, torch.randn(5, 256, 33)),
        (3, torch.zeros(5, 256, 32, dtype=torch.int32)),
        (3, torch.zeros(5, 256, 32, dtype=torch.int8)),
        (4, torch.ones(5, 256)),
        (5, torch.randn(31)),
        (7, 33),
        (8, 0),
        (8, 5),
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


def test_bad_digits_are_python_errors():
    digits, scales = ops().split_projection(torch.randn(40, 32))
    x, weight, bias, *rest = arguments()
    x = torch.randn(200, 32)
    for wrong in ((digits, None), (digits[:-1], scales), (digits, scales[:-1].double()), (digits, torch.ones(1))):
        with pytest.raises(RuntimeError, match="digit"):
            ops().lookup_ffn(x, weight, bias, *rest, *wrong)
    with pytest.raises(RuntimeError, match="matrix"):
        ops().split_projection(torch.randn(40, 32).double())


@pytest.mark.parametrize("projection", ["bh4", "dense"])
@pytest.mark.parametrize("d", [50, 64])
def test_multiplied_out(projection, d):
    ffn = build_ffn("lookup", hidden_size=d, num_tables=40, table_size=16, projection=projection).double()
    torch.nn.init.normal_(ffn.projection_bias)
    x = torch.randn(7, d, dtype=torch.float64)
    matrix = multiplied_out(ffn.projection.detach(), ffn.options.alpha, d, 160)
    z = x @ matrix.T.double() + ffn.projection_bias
    assert torch.allclose(z.view(7, 40, 4), ffn.hash_inputs(x), atol=1e-5)


def test_multiplied_out_whatever_the_default_type():
    ffn = lookup_ffn_of_64().eval()
    x = torch.randn(100, 64)
    with torch.no_grad():
        expected = ffn(x)
        ffn._folded.clear()
        torch.set_default_dtype(torch.float64)
        try:
            assert torch.equal(ffn(x), expected)
        finally:
            torch.set_default_dtype(torch.float32)


def test_export_for_any_number_of_tokens():
    ffn = lookup_ffn_of_64().eval()
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
