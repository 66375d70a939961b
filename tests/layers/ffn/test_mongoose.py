"""MONGOOSE: what the triplet loss is and does, and when drift rebuilds the tables."""

import copy

import pytest
import torch
import torch.nn.functional as F

from lookupffn import UserError, build_ffn
from tests.layers.ffn.test_slide import output_by_hand, retrieved_by_hand


def mongoose(hidden_size=24, **options):
    torch.manual_seed(1)
    ffn = build_ffn("mongoose", hidden_size=hidden_size, **{"bits": 3, "num_tables": 4, "positives": 0.1} | options)
    torch.nn.init.normal_(ffn.intermediate.weight, std=0.2)
    return ffn


def test_forward_matches_loops_and_gives_the_projections_no_gradient():
    ffn = mongoose().double()
    x = torch.randn(10, 24, dtype=torch.float64)
    y = ffn(x)
    assert torch.allclose(y, output_by_hand(ffn, x), atol=1e-12)
    y.sum().backward()
    assert ffn.projection.grad is None
    ffn.auxiliary_losses()["triplet"].backward()
    assert ffn.projection.grad.abs().sum() > 0


def triplet_by_hand(ffn, x):
    o, n = ffn.options, ffn.options.intermediate_size
    weight = ffn.intermediate.weight.detach()
    losses = []
    for token, retrieved in zip(x, retrieved_by_hand(ffn, x), strict=True):
        inner = (weight @ token + ffn.intermediate.bias).tolist()
        order = sorted(range(n), key=inner.__getitem__, reverse=True)
        positive = [j for j in order[: round(o.positives * n)] if j not in retrieved]
        negative = [j for j in order[n - n // 2 :] if j in retrieved]
        if positive and negative:
            relaxed = torch.tanh(ffn.projections(token))
            alike = [F.cosine_similarity(relaxed, torch.tanh(ffn.projections(row)), dim=0) for row in weight]
            gap = sum(alike[j] for j in negative) / len(negative) - sum(alike[j] for j in positive) / len(positive)
            losses.append(F.relu(gap + o.triplet_margin))
    return o.triplet_weight * sum(losses) / len(losses)


def test_triplet_loss_matches_loops(monkeypatch):
    ffn = mongoose(triplet_tokens=8, triplet_weight=0.7).double()
    x = torch.randn(8, 24, dtype=torch.float64)
    monkeypatch.setattr(torch, "randint", lambda high, shape, device: torch.arange(8))  # every token once
    ffn(x)
    assert ffn.auxiliary_losses()["triplet"].item() == pytest.approx(triplet_by_hand(ffn, x).item())


def test_triplet_loss_lowers_misplacement():
    """At an equal number of neurons, more of those with large inner products, and fewer of those with small ones."""
    ffn = mongoose(hidden_size=32, bits=4, num_tables=6, triplet_tokens=256)
    centres = torch.randn(16, 32)

    def batch():
        return F.layer_norm(centres[torch.randint(16, (512,))] + 0.5 * torch.randn(512, 32), (32,))

    @torch.no_grad()
    def misplaced(x):
        retrieved, inner = ffn.eval().retrieve(x), ffn.intermediate(x)
        largest = inner >= inner.topk(12, dim=1).values[:, -1:]
        smallest = inner < inner.median(1, keepdim=True).values
        ffn.train()
        return (largest & ~retrieved).sum() / largest.sum(), (smallest & retrieved).sum() / retrieved.sum()

    optimizer = torch.optim.Adam([ffn.projection], lr=2e-3)
    test = batch()
    missed_before, wrong_before = misplaced(test)
    for _ in range(80):
        ffn(batch())
        optimizer.zero_grad()
        ffn.auxiliary_losses()["triplet"].backward()
        optimizer.step()
    missed_after, wrong_after = misplaced(test)
    assert missed_after < 0.8 * missed_before and wrong_after < 0.9 * wrong_before


def test_no_triplet_is_a_loss_of_zero():
    ffn = mongoose(intermediate_size=1)
    ffn(torch.randn(4, 24))
    ffn.auxiliary_losses()["triplet"].backward()
    assert ffn.auxiliary_losses()["triplet"] == 0 and not ffn.projection.grad.any()
    ffn(torch.zeros(0, 24))
    assert ffn.auxiliary_losses()["triplet"] == 0


def test_evaluation_has_no_loss_and_can_be_copied():
    ffn = mongoose()
    ffn(torch.randn(4, 24))
    ffn.eval()(torch.randn(4, 24))
    assert ffn.auxiliary_losses() == {}
    copy.deepcopy(ffn)


def test_tables_are_rebuilt_on_drift_alone():
    ffn = mongoose(drift_threshold=0.05)
    x = torch.randn(4, 24)
    ffn(x)
    assert ffn.rebuilds == 1
    built = ffn.codes.clone()
    ffn(x)
    with torch.no_grad():
        ffn.intermediate.weight += 1e-3 * torch.randn_like(ffn.intermediate.weight)
    ffn(x)
    assert ffn.rebuilds == 1 and torch.equal(ffn.codes, built)
    with torch.no_grad():  # of two neurons out of 96 all bits change: 2%; of ten: 10%
        ffn.intermediate.weight[:2] *= -1
        ffn(x)
        assert ffn.rebuilds == 1
        ffn.intermediate.weight[2:10] *= -1
        ffn(x)
    assert ffn.rebuilds == 2 and not torch.equal(ffn.codes, built)
    with torch.no_grad():  # projections drift, too
        ffn.projection *= -1
        ffn(x)
    assert ffn.rebuilds == 3


def test_drift_is_looked_at_every_so_often():
    ffn = mongoose(drift_threshold=0.05, check_every=4)
    rebuilt = []
    for _ in range(9):
        torch.nn.init.normal_(ffn.intermediate.weight)
        before = ffn.rebuilds.item()
        ffn(torch.randn(4, 24))
        rebuilt.append(ffn.rebuilds.item() - before)
    assert rebuilt == [1, 0, 0, 0, 1, 0, 0, 0, 1]


def test_cost_and_roles():
    ffn = mongoose(intermediate_size=40)
    cost = ffn.cost()
    expected = 40 * (1 - (1 - 2**-3) ** 4)
    assert cost.flops_by_part == {"hash": 2 * 24 * 12, "neurons": pytest.approx(4 * 24 * expected)}
    assert cost.parameters == 2 * 24 * 40 + 40 + 24 + 24 * 12
    assert ffn.parameter_roles() == {"hash": [ffn.projection]}


@pytest.mark.slow
def test_the_hash_learns_when_compiled():
    ffn = mongoose()
    ffn.compile(backend="aot_eager")
    x = torch.randn(6, 24)
    ffn(x)
    ffn.auxiliary_losses()["triplet"].backward()
    assert torch.isfinite(ffn.projection.grad).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 13}, "ffn 'mongoose': bits must be a whole number from 1 to 12"),
        ({"drift_threshold": 1.5}, "drift_threshold must be a number from 0 to 1"),
        ({"positives": 0.0}, "positives must be a number above 0"),
        ({"positives": 0.6}, "positives must be a number above 0 and at most 0.5"),
        ({"triplet_weight": -1}, "triplet_weight must be a number of at least 0"),
        ({"triplet_margin": -1}, "triplet_margin must be a number of at least 0"),
        ({"check_every": 0}, "check_every must be a whole number of at least 1"),
        ({"triplet_tokens": 0}, "triplet_tokens must be a whole number of at least 1"),
    ],
)
def test_bad_values(options, message):
    with pytest.raises(UserError, match=message):
        build_ffn("mongoose", hidden_size=32, **options)
