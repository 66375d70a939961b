import math

import pytest
import torch
from torch import nn

from lookupffn import UserError, build_ffn
from lookupffn.config.sections import OptimizerSettings, read_section
from lookupffn.training.optimizer import build_optimizer, learning_rate
from tests.training.tiny import section


def settings(**changes) -> OptimizerSettings:
    return read_section("optimizer", {**section("optimizer"), "lr": 1.0, **changes})


def test_biases_and_norms_do_not_decay():
    model = nn.ModuleDict({"linear": nn.Linear(3, 4), "norm": nn.LayerNorm(4), "embedding": nn.Embedding(5, 4)})
    model.register_parameter("tables", nn.Parameter(torch.zeros(2, 3, 4)))
    decaying, others = build_optimizer(model, settings(weight_decay=0.5), torch.device("cpu")).param_groups
    assert {tuple(p.shape) for p in decaying["params"]} == {(4, 3), (5, 4), (2, 3, 4)}
    assert {tuple(p.shape) for p in others["params"]} == {(4,)}
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.5, 0.0)


def test_tables_and_hash_have_their_own_rate_and_decay():
    model = nn.ModuleDict({"ffn": build_ffn("lookup", hidden_size=32), "norm": nn.LayerNorm(32)})
    apart = settings(weight_decay=0.5, tables_lr_scale=2.0, tables_weight_decay=0.0, hash_lr_scale=0.25)
    found = {
        parameter: (group["lr_scale"], group["weight_decay"])
        for group in build_optimizer(model, apart, torch.device("cpu")).param_groups
        for parameter in group["params"]
    }
    ffn = model["ffn"]
    assert found == {
        ffn.table: (2.0, 0.0),
        ffn.projection: (0.25, 0.5),
        ffn.projection_bias: (0.25, 0.0),
        ffn.bias: (1.0, 0.0),
        model["norm"].weight: (1.0, 0.0),
        model["norm"].bias: (1.0, 0.0),
    }


@pytest.mark.parametrize("bad", [{"tables_lr_scale": 0.0}, {"hash_weight_decay": -1.0}])
def test_bad_rates_of_tables_and_hash(bad: dict):
    with pytest.raises(UserError, match=next(iter(bad))):
        settings(**bad)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_schedule_of_a_step_budget(schedule: str):
    s = settings(schedule=schedule, warmup_steps=10, warmup_ratio=None)
    rates = [learning_rate(s, step=step, total_steps=110, progress=0.0) for step in range(110)]
    assert rates[:11] == pytest.approx([(step + 1) / 10 for step in range(10)] + [1.0])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[60] == pytest.approx(0.5)
    assert 0 < rates[-1] < 0.02
    quarter = 0.75 if schedule == "linear" else 0.5 * (1 + math.cos(math.pi / 4))
    assert rates[35] == pytest.approx(quarter)


def test_warmup_ratio_counts_steps():
    s = settings(warmup_steps=None, warmup_ratio=0.1)
    assert learning_rate(s, step=4, total_steps=100, progress=0.0) == pytest.approx(0.5)
    assert learning_rate(s, step=10, total_steps=100, progress=0.0) == 1.0


def test_no_warmup():
    s = settings(warmup_steps=0, warmup_ratio=None)
    assert learning_rate(s, step=0, total_steps=5, progress=0.0) == 1.0


def test_schedule_of_minutes():
    s = settings(warmup_steps=None, warmup_ratio=0.1)
    rates = [learning_rate(s, step=0, total_steps=None, progress=p) for p in (0.0, 0.05, 0.1, 0.55, 1.0)]
    assert rates == pytest.approx([0.01, 0.5, 1.0, 0.5, 0.0])  # never 0 at the first update
    counted = settings(warmup_steps=10, warmup_ratio=None)
    assert learning_rate(counted, step=4, total_steps=None, progress=0.2) == pytest.approx(0.5 * 0.8)
