"""YOSO against loops, and its samples against the probabilities they estimate."""

from math import acos, pi

import pytest
import torch
import torch.nn.functional as F

from lookupffn import UserError, build_ffn
from lookupffn.layers.ffn.yoso import collision_probability


def yoso(hidden_size=24, **options):
    torch.manual_seed(1)
    return build_ffn("yoso", hidden_size=hidden_size, **{"intermediate_size": 20, "bits": 3} | options)


def weights_by_hand(ffn, x):
    def weight(row, key):
        return (1 - acos(F.cosine_similarity(row, key, dim=0).item()) / pi) ** ffn.options.bits

    return [[weight(row, key) for key in ffn.key] for row in x]


def test_expectation_matches_loops():
    ffn = yoso(form="expectation").double()
    x = torch.randn(6, 24, dtype=torch.float64)
    total = torch.tensor(weights_by_hand(ffn, x), dtype=torch.float64) @ ffn.value
    assert torch.allclose(ffn(x), total / total.norm(dim=1, keepdim=True) + ffn.bias, atol=1e-10)
    assert torch.equal(ffn(x), ffn.eval()(x))


@pytest.mark.parametrize("form", ["expectation", "sampled"])
def test_gradient_is_the_papers_lower_bound(form):
    ffn = yoso(form=form, num_hashes=40).double().eval()
    q = F.normalize(torch.randn(5, 24, dtype=torch.float64), dim=-1).requires_grad_()
    k = F.normalize(ffn.key.detach(), dim=-1).requires_grad_()
    weights = ffn._expected_weights(q, k) if form == "expectation" else ffn._sampled_weights(q, k)
    upstream = torch.randn_like(weights)
    grad_q, grad_k = torch.autograd.grad((weights * upstream).sum(), (q, k))
    expected_q, expected_k = torch.zeros_like(q), torch.zeros_like(k)
    for i in range(5):
        for j in range(20):
            slope = upstream[i, j] * ffn.options.bits / 2 * weights[i, j]
            expected_q[i] += (slope * k[j]).detach()
            expected_k[j] += (slope * q[i]).detach()
    assert torch.allclose(grad_q, expected_q, atol=1e-12) and torch.allclose(grad_k, expected_k, atol=1e-12)


def test_gradient_is_finite_where_token_and_key_agree():
    ffn = yoso(form="expectation")
    x = ffn.key[:3].detach().clone().requires_grad_()
    ffn(x).sum().backward()
    assert torch.isfinite(x.grad).all() and torch.isfinite(ffn.key.grad).all()


@pytest.mark.parametrize("hidden_size", [24, 64])
def test_collisions_are_as_probable_as_the_formula_says(hidden_size):
    ffn = yoso(hidden_size, num_hashes=250)
    q, k = (F.normalize(torch.randn(rows, hidden_size), dim=-1) for rows in (4, 5))
    k[:4] = F.normalize(q + 0.5 * k[:4], dim=-1)  # some near, some not
    draws = torch.stack([ffn._sampled_weights(q, k) for _ in range(40)])
    expected = collision_probability(q, k, 3)
    assert expected.max() > 0.5 and expected.min() < 0.2
    # 10,000 hashes, not independent where they share a transform
    assert torch.allclose(draws.mean(0), expected, atol=0.03)


@pytest.mark.parametrize(("bits", "hidden_size"), [(3, 24), (9, 16)])
def test_tables_give_what_the_weights_give(bits, hidden_size):
    ffn = yoso(hidden_size, bits=bits, num_hashes=12).eval()
    x = torch.randn(2, 7, hidden_size)
    by_weights = ffn(x)
    with torch.no_grad():
        assert torch.allclose(ffn(x), by_weights, atol=1e-5)
        total = torch.zeros(hidden_size)
        codes, key_codes = (ffn.hash(F.normalize(v, dim=-1), ffn.diagonals) for v in (x[1, 2:3], ffn.key))
        for h in range(12):
            for j in range(20):
                total += ffn.value[j] * float(codes[0, h] == key_codes[j, h]) / 12
        assert torch.allclose(ffn(x)[1, 2], F.normalize(total, dim=0) + ffn.bias, atol=1e-5)


def test_hyperplanes_are_drawn_in_training_and_fixed_at_evaluation():
    ffn = yoso(num_hashes=4)
    x = torch.randn(5, 24)
    before = {name: value.clone() for name, value in ffn.state_dict().items()}
    assert not torch.equal(ffn(x), ffn(x))
    torch.manual_seed(7)
    first = ffn(x)
    torch.manual_seed(7)
    assert torch.equal(first, ffn(x))
    assert torch.equal(ffn.eval()(x), ffn(x))
    assert all(torch.equal(value, before[name]) for name, value in ffn.state_dict().items())


def test_many_hashes_come_near_the_expectation():
    sampled, exact = yoso(num_hashes=255).eval(), yoso(form="expectation")
    exact.load_state_dict(sampled.state_dict(), strict=False)
    x = torch.randn(30, 24)
    assert F.cosine_similarity(sampled(x), exact(x)).mean() > 0.95


def test_empty_buckets_give_the_bias_and_no_gradient():
    ffn = yoso(intermediate_size=1, bits=12, num_hashes=1).eval()
    x = (-ffn.key.detach()).requires_grad_()
    y = ffn(x)
    assert torch.equal(y[0], ffn.bias)
    y.sum().backward()
    assert not x.grad.any() and not ffn.key.grad.any() and not ffn.value.grad.any()
    with torch.no_grad():
        assert torch.equal(ffn(x)[0], ffn.bias)


def test_cost():
    exact = yoso(form="expectation").cost()
    assert exact.flops_by_part == {"weights": 2 * 24 * 20, "values": 2 * 24 * 20}
    assert exact.parameters == exact.parameters_touched == 2 * 24 * 20 + 24
    # 30 hashes of 3 bits need 90 hyperplanes: 3 copies of 32, each of 3 diagonals and transforms
    sampled = yoso(num_hashes=30).cost()
    assert sampled.flops_by_part == {"hash": 9 * 32, "hadamard": 9 * 32 * 5, "gather": 30 * 24}
    assert sampled.parameters_touched == 31 * 24
    assert yoso(num_hashes=30, intermediate_size=400).cost().flops == sampled.flops


@pytest.mark.slow
def test_expectation_compiles():
    ffn = yoso(form="expectation")
    ffn.compile(backend="aot_eager")
    ffn(torch.randn(6, 24)).sum().backward()
    assert torch.isfinite(ffn.key.grad).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"intermediate_size": 0}, "intermediate_size must be a whole number of at least 1"),
        ({"form": "exact"}, "unknown ffn 'yoso': form 'exact'.*expectation"),
        ({"bits": 0}, "bits must be a whole number from 1 to 12"),
        ({"num_hashes": 256}, "num_hashes must be a whole number from 1 to 255"),
        ({"num_hashes": 0}, "num_hashes must be a whole number from 1 to 255"),
    ],
)
def test_bad_values(options, message):
    with pytest.raises(UserError, match=message):
        build_ffn("yoso", hidden_size=32, **options)
