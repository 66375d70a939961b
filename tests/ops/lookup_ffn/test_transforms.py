"""Derivatives beyond one backward: right, or refused; by the kernels as by the reference."""

import pytest
import torch
from torch.func import functional_call, hessian, jacrev, jvp, vmap

from lookupffn import build_ffn
from lookupffn.ops import hash_scores, lookup, weighted_gather

BACKENDS = ["auto", "reference"]


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    if request.param == "auto":
        request.getfixturevalue("kernels")
    monkeypatch.setenv("LOOKUPFFN_BACKEND", request.param)


def layer(projection="bh4", dtype=torch.float64, **options):
    options = {"num_tables": 4, "table_size": 8, "table_std": 1.0, "input_gradient": 1.0, **options}
    return build_ffn("lookup", hidden_size=16, projection=projection, **options).to(dtype)


def difference(f, x, v):
    return (f(x + 1e-5 * v) - f(x - 1e-5 * v)) / 2e-5


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("normaliser", ["all", "kept"])
@pytest.mark.parametrize("num_probes", [1, 3, 5])
def test_forward_mode(backend, training, normaliser, num_probes):
    ffn = layer(normaliser=normaliser, num_probes=num_probes).train(training)
    x, v = torch.randn(2, 5, 16, dtype=torch.float64)
    value, tangent = jvp(ffn, (x,), (v,))
    with torch.no_grad():
        assert torch.allclose(value, ffn(x)) and torch.allclose(tangent, difference(ffn, x, v), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("no_grad", [True, False])
@pytest.mark.parametrize("projection", ["bh4", "dense"])
def test_forward_mode_in_float32(backend, projection, no_grad):
    ffn = layer(projection, torch.float32)
    x, v = torch.randn(2, 5, 16)
    with torch.set_grad_enabled(not no_grad):
        tangent = jvp(ffn, (x,), (v,))[1]
        with torch.autograd.forward_ad.dual_level():
            dual = ffn(torch.autograd.forward_ad.make_dual(x, v))
            by_hand = torch.autograd.forward_ad.unpack_dual(dual).tangent
    ffn.double()
    right = difference(ffn, x.double(), v.double())
    assert torch.allclose(tangent.double(), right, rtol=1e-3, atol=1e-4)
    assert torch.allclose(by_hand.double(), right, rtol=1e-3, atol=1e-4)


def test_reverse_and_second_order_by_torch_func(backend):
    ffn = layer()
    x, v = torch.randn(2, 5, 16, dtype=torch.float64)

    def loss(x):
        return ffn(x).square().sum()

    inputs = x.clone().requires_grad_()
    gradient = torch.func.grad(loss)
    assert torch.allclose(gradient(x), torch.autograd.grad(loss(inputs), inputs)[0])
    product = jvp(gradient, (x,), (v,))[1]
    assert torch.allclose(product, difference(gradient, x, v), rtol=1e-4, atol=1e-4)
    one = x[:1]
    assert torch.allclose(hessian(loss)(one).view(16, 16) @ v[0], jvp(gradient, (one,), (v[:1],))[1].view(16))


def test_vmap_over_inputs_and_over_weights(backend):
    ffn = layer(dtype=torch.float32)
    x = torch.randn(3, 5, 16)
    with torch.no_grad():
        assert torch.allclose(vmap(ffn)(x), ffn(x.view(15, 16)).view(3, 5, 16), atol=1e-5)
        stacked = {name: value + torch.randn(3, *value.shape) for name, value in ffn.named_parameters()}
        together = vmap(lambda weights: functional_call(ffn, weights, (x[0],)))(stacked)
        for i, y in enumerate(together):
            alone = functional_call(ffn, {name: value[i] for name, value in stacked.items()}, (x[0],))
            assert torch.allclose(y, alone, rtol=1e-3, atol=1e-2)
    assert jacrev(ffn)(x[0]).shape == (5, 16, 5, 16)


@pytest.mark.parametrize("projection", ["bh4", "dense"])
@pytest.mark.parametrize("reduced", [torch.Tensor.sum, lambda y: y.square().sum()])
def test_a_second_backward_is_refused(backend, projection, reduced):
    ffn = layer(projection, torch.float32)
    x = torch.randn(5, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(reduced(ffn(x)), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"second backward.*torch\.func"):
        (gradient.square().sum() + x.sum()).backward()
    # in a residual block the gradient hangs together with x by another path, whose part alone would be wrong
    (gradient,) = torch.autograd.grad(reduced(ffn(x) + x.square()), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second backward"):
        torch.autograd.grad(gradient.sum(), x)
    weights = torch.autograd.grad(reduced(ffn(x)), list(ffn.parameters()), create_graph=True)
    with pytest.raises(RuntimeError, match="second backward"):
        sum(w.square().sum() for w in weights).backward()


def test_the_parts_refuse_too(backend):
    z, table = torch.randn(5, 4, 3, requires_grad=True), torch.randn(4, 8, 16, requires_grad=True)
    codes, scores = hash_scores(z, 2)
    for y in (lookup(z, table, 2), weighted_gather(table, codes, scores), scores):
        inputs = [t for t in (z, table) if t is not table or y is not scores]
        gradient = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
        with pytest.raises(RuntimeError, match="second backward"):
            sum(g.sum() for g in gradient).backward()


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool, torch.complex64])
def test_what_is_not_floating_point_is_refused(backend, dtype):
    ffn = layer(dtype=torch.float32)
    for no_grad in (True, False):
        with torch.set_grad_enabled(not no_grad), pytest.raises(TypeError, match="floating"):
            ffn(torch.ones(5, 16, dtype=dtype))
