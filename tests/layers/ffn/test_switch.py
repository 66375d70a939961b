from math import ceil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lookupffn import UserError, build_ffn


def reference(ffn, x, capacity):
    """Token by token; an expert that is full gives zeros. Also the experts chosen."""
    E = ffn.options.num_experts
    outputs, chosen = [], []
    for token in x:
        probabilities = (ffn.router @ token).softmax(0)
        e = int(probabilities.argmax())
        hidden = torch.nn.functional.gelu(ffn.weight_in[e] @ token + ffn.bias_in.view(E, -1)[e])
        y = probabilities[e] * (ffn.weight_out[e] @ hidden + ffn.bias_out.view(E, -1)[e])
        outputs.append(y if chosen.count(e) < capacity else torch.zeros_like(y))
        chosen.append(e)
    return torch.stack(outputs), chosen


def build(d=6, E=3, **options):
    ffn = build_ffn("switch", hidden_size=d, num_experts=E, intermediate_size=5, router_jitter=0.0, **options)
    for parameter in ffn.parameters():
        torch.nn.init.normal_(parameter)
    return ffn


@given(
    M=st.integers(1, 12), E=st.integers(1, 5), factor=st.sampled_from([None, 0.5, 1.0, 1.25]), training=st.booleans()
)
def test_outputs_and_gradients_match_the_formula(M, E, factor, training):
    ffn = build(E=E, capacity_factor=factor).train(training)
    x = torch.randn(M, 6, requires_grad=True)
    capacity = ceil(factor * M / E) if training and factor else M
    y, (expected, _) = ffn(x), reference(ffn, x, capacity)
    assert torch.allclose(y, expected, atol=1e-5)
    upstream = torch.randn_like(y)
    variables = (x, *ffn.parameters())
    wanted = torch.autograd.grad(expected, variables, upstream, allow_unused=True)
    for a, b in zip(torch.autograd.grad(y, variables, upstream), wanted, strict=True):
        assert torch.allclose(a, torch.zeros_like(a) if b is None else b, atol=1e-4)


def test_load_balancing_loss():
    ffn = build(load_balancing_weight=0.5)
    assert ffn.auxiliary_losses() == {}
    x = torch.randn(20, 6)
    ffn(x)
    probabilities = (x @ ffn.router.T).softmax(-1)
    shares = torch.nn.functional.one_hot(probabilities.argmax(-1), 3).float().mean(0)
    expected = 0.5 * 3 * (shares * probabilities.mean(0)).sum()
    (loss,) = ffn.auxiliary_losses().values()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, ffn.router)
    assert torch.allclose(gradient, torch.autograd.grad(expected, ffn.router)[0], atol=1e-6)
    ffn.eval()(x)
    assert ffn.auxiliary_losses() == {}


def test_an_even_router_has_the_least_loss():
    ffn = build(E=4, load_balancing_weight=1.0)
    torch.nn.init.zeros_(ffn.router)
    ffn(torch.randn(8, 6))
    assert ffn.auxiliary_losses()["load_balancing_loss"].item() == pytest.approx(1)


def test_no_loss_where_it_weighs_nothing():
    ffn = build(load_balancing_weight=0.0)
    ffn(torch.randn(8, 6))
    assert ffn.auxiliary_losses() == {}


def test_jitter_is_drawn_in_training_only():
    ffn = build_ffn("switch", hidden_size=6, router_jitter=0.3)
    x = torch.randn(50, 6)
    assert not torch.equal(ffn.route(x), ffn.route(x))
    ffn.eval()
    assert torch.equal(ffn.route(x), ffn.route(x))


def test_the_router_runs_in_float32():
    ffn = build()
    x = torch.randn(50, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        probabilities = ffn.route(x)
    assert probabilities.dtype == torch.float32 and torch.equal(probabilities, ffn.route(x))


def test_statistics_are_of_the_experts_chosen_in_evaluation():
    ffn = build(E=4, capacity_factor=1.0).eval()
    x = torch.randn(10, 6)
    ffn(x)
    ffn.collect_statistics(True)
    ffn.train()(x)
    assert ffn.statistics() == {}
    ffn.eval()(x[:4])
    ffn(x[4:])
    _, chosen = reference(ffn, x, 10)
    shares = torch.tensor([chosen.count(e) / 10 for e in set(chosen)])
    assert ffn.statistics() == {
        "expert_load_entropy_bits": pytest.approx(-(shares * shares.log2()).sum().item(), abs=1e-5),
        "tokens_over_capacity": pytest.approx(sum(max(0, s - 0.25) for s in shares.tolist()), abs=1e-6),
    }


def test_cost_by_hand():
    cost = build_ffn("switch", hidden_size=10, num_experts=4, intermediate_size=3).cost()
    assert cost.flops_by_part == {"router": 2 * 40, "selection": 4, "expert": 2 * 2 * 30, "gate": 10}
    expert = 60 + 3 + 10
    assert (cost.parameters, cost.parameters_touched) == (40 + 4 * expert, 40 + expert)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_experts": 0}, "num_experts must be a whole number of at least 1"),
        ({"intermediate_size": 0}, "intermediate_size must be a whole number of at least 1"),
        ({"capacity_factor": 0}, "capacity_factor must be a number above 0 or null .no limit."),
        ({"router_jitter": 1}, "router_jitter must be a number from 0 to below 1"),
        ({"load_balancing_weight": -1}, "load_balancing_weight must be a number of at least 0"),
        ({"hidden_act": "gellu"}, "did you mean 'gelu'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        build_ffn("switch", hidden_size=8, **options)
