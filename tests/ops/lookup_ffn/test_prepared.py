"""What the kernels prepare from the weights is never stale, whatever writes them."""

import copy

import pytest
import torch
from torch.func import functional_call
from torch.nn.utils import parametrize

from lookupffn import build_ffn

pytestmark = pytest.mark.usefixtures("kernels")


def layer():
    """One whose projection is multiplied out for many tokens, where the machine has tiles for it."""
    return build_ffn("lookup", hidden_size=64, num_tables=8, table_size=16, table_std=1.0, block_size=16).eval()


def expected(monkeypatch, ffn, x):
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setenv("LOOKUPFFN_BACKEND", "reference")
        return ffn(x)


def same(got, expected):
    """Whether all tokens agree, but for one that may have a hash input of about zero."""
    if got.isnan().any() or expected.isnan().any():
        return torch.equal(got.isnan(), expected.isnan())
    error = (got - expected).norm(dim=-1) / expected.norm(dim=-1)
    return (error > 1e-4).sum() <= len(got) // 50


def in_place(ffn, new):
    ffn.projection.mul_(0).add_(new)


def through_data(ffn, new):
    ffn.projection.data.copy_(new)


def another_data(ffn, new):
    ffn.projection.data = new.clone()


def emptied_and_refilled(ffn, new):
    """As offloading does; the memory may come back at the same address."""
    ffn.projection.data = torch.empty(0)
    ffn.projection.data = new.clone()


def through_numpy(ffn, new):
    ffn.projection.detach().numpy()[...] = new.numpy()


def load_state_dict(ffn, new):
    ffn.load_state_dict({**ffn.state_dict(), "projection": new})


def load_and_assign(ffn, new):
    ffn.load_state_dict({**ffn.state_dict(), "projection": new.clone()}, assign=True)


def swapped(ffn, new):
    """As torch.optim.swa_utils and EMA libraries may."""
    torch.utils.swap_tensors(ffn.projection, torch.nn.Parameter(new.clone()))


def another_parameter(ffn, new):
    ffn.projection = torch.nn.Parameter(new.clone())


WRITERS = [
    in_place,
    through_data,
    another_data,
    emptied_and_refilled,
    through_numpy,
    load_state_dict,
    load_and_assign,
    swapped,
    another_parameter,
]


@pytest.mark.parametrize("M", [3, 100])
@pytest.mark.parametrize("writer", WRITERS)
def test_after_a_write(monkeypatch, writer, M):
    ffn, x = layer(), torch.randn(M, 64)
    with torch.no_grad():
        for _ in range(4):
            ffn(x)
            writer(ffn, torch.randn_like(ffn.projection))
            assert same(ffn(x), expected(monkeypatch, ffn, x))


@pytest.mark.parametrize("M", [3, 100])
@pytest.mark.parametrize("changed", [0, 1, -1])
def test_after_a_change_of_one_number(monkeypatch, M, changed):
    ffn, x = layer(), torch.randn(M, 64)
    with torch.no_grad():
        ffn(x)
        weight = ffn.projection.data.view(-1)
        for value in (5.0, -5.0, 0.0, float("nan")):
            weight[changed] = value
            result, right = ffn(x), expected(monkeypatch, ffn, x)
            assert same(result, right)


@pytest.mark.parametrize("M", [3, 100])
def test_signs_flipped_in_pairs(monkeypatch, M):
    ffn, x = layer(), torch.randn(M, 64)
    with torch.no_grad():
        for rows in (slice(0, 2), slice(2, 6), slice(None)):
            ffn(x)
            ffn.projection.data[0, 0, 0, rows].neg_()
            assert same(ffn(x), expected(monkeypatch, ffn, x))


@pytest.mark.parametrize("M", [5, 100])
def test_temporary_weights(monkeypatch, M):
    """Each is freed after its call, and the next may lie at the same address with the same version."""
    ffn, x = layer(), torch.randn(M, 64)
    with torch.no_grad():
        for _ in range(20):
            weights = {name: value + torch.randn_like(value) for name, value in ffn.named_parameters()}
            result = functional_call(ffn, weights, (x,))
            double = copy.deepcopy(ffn)
            double.load_state_dict(weights)
            assert same(result, expected(monkeypatch, double, x))
            del weights


class Added(torch.nn.Module):
    """As LoRA does."""

    def __init__(self, like):
        super().__init__()
        self.delta = torch.nn.Parameter(torch.zeros_like(like))

    def forward(self, weight):
        return weight + self.delta


@pytest.mark.parametrize("M", [5, 100])
def test_parametrization(monkeypatch, M):
    ffn, x = layer(), torch.randn(M, 64)
    parametrize.register_parametrization(ffn, "projection", Added(ffn.projection))
    with torch.no_grad():
        for _ in range(20):
            ffn.parametrizations.projection[0].delta.normal_()
            assert same(ffn(x), expected(monkeypatch, ffn, x))


@pytest.mark.parametrize("M", [5, 100])
@pytest.mark.parametrize("settings", [{"fused": True}, {"foreach": True}, {}])
def test_optimizers(monkeypatch, settings, M):
    ffn, x = layer().train(), torch.randn(M, 64)
    optimizer = torch.optim.AdamW(ffn.parameters(), lr=0.1, **settings)
    for _ in range(3):
        loss = ffn(x).square().sum()
        with torch.no_grad():
            ffn(x)  # between a forward and its update
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            assert same(ffn(x), expected(monkeypatch, ffn, x))


@pytest.mark.parametrize("M", [5, 100])
def test_inference_mode_and_compiled(monkeypatch, M):
    ffn, x = layer(), torch.randn(M, 64)
    compiled = torch.compile(ffn, backend="aot_eager", fullgraph=True)
    for _ in range(3):
        with torch.no_grad():
            ffn.projection.data.normal_()
            right = expected(monkeypatch, ffn, x)
            assert same(compiled(x), right)
        with torch.inference_mode():
            assert same(ffn(x), right)


def test_copies_and_other_layers_share_nothing_wrong(monkeypatch):
    layers = [layer() for _ in range(140)]  # more than are kept
    x = torch.randn(4, 64)
    with torch.no_grad():
        first = [ffn(x) for ffn in layers]
        for ffn, y in zip(layers, first, strict=True):
            assert torch.equal(ffn(x), y) and torch.equal(copy.deepcopy(ffn)(x), y)
        assert same(first[7], expected(monkeypatch, layers[7], x))
        layers[0].options = layers[0].options.__class__(**{**vars(layers[0].options), "alpha": 0.3})
        assert same(layers[0](x), expected(monkeypatch, layers[0], x))


def test_whatever_the_default_type():
    ffn, x = layer(), torch.randn(100, 64)
    with torch.no_grad():
        expected = ffn(x)
        torch.set_default_dtype(torch.float64)
        try:
            assert torch.equal(copy.deepcopy(ffn)(x), expected)
        finally:
            torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("M", [1, 3, 20, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("projection", ["bh4", "dense"])
def test_a_layer_prepared_once_gives_the_same(projection, dtype, M):
    ffn = build_ffn("lookup", hidden_size=64, num_tables=8, table_size=16, projection=projection).to(dtype).eval()
    function, x = ffn.prepared(), torch.randn(2, M, 64).to(dtype)
    with torch.no_grad():
        assert torch.equal(function(x), ffn(x)) and torch.equal(function(x[0]), ffn(x[0]))
    inputs = x.clone().requires_grad_()
    assert torch.autograd.grad(function(inputs).sum(), inputs)[0].abs().sum() > 0


def test_a_layer_prepared_where_the_kernels_decline(monkeypatch):
    ffn, x = build_ffn("lookup", hidden_size=64, num_probes=5).eval(), torch.randn(4, 64)
    with torch.no_grad():
        assert torch.equal(ffn.prepared()(x), ffn(x))
        monkeypatch.setenv("LOOKUPFFN_BACKEND", "reference")
        other = layer()
        assert torch.equal(other.prepared()(x), other(x))
        assert torch.equal(other.double().prepared()(x.double()), other(x.double()))
