import pytest

from lookupffn.config.sections import (
    Budget,
    evaluation_settings,
    optimizer_settings,
    training_settings,
)
from lookupffn.errors import UserError
from tests.training.tiny import section


def training(world_size: int = 1, **changes):
    return training_settings({**section("training"), **changes}, world_size)


def optimizer(**changes):
    return optimizer_settings({**section("optimizer"), **changes})


def test_defaults_and_whole_numbers_written_as_floats():
    assert training().budget.unit == "steps"
    assert training(max_tokens=1e6).budget == Budget("tokens", 1e6)
    assert training(max_steps=1e3).max_steps == 1000
    assert optimizer(lr=1).lr == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": "abc"}, "training.max_steps must be a whole number of at least 1 or null, not 'abc'"),
        ({"max_steps": 0}, "training.max_steps must be a whole number of at least 1"),
        ({"max_steps": None}, "no budget"),
        ({"max_steps": 1.5}, "training.max_steps must be a whole number"),
        ({"max_tokens": 5, "max_minutes": 1}, "max_tokens and max_minutes are both set"),
        ({"max_minutes": float("nan")}, "training.max_minutes must be a number above 0 or null, not nan"),
        ({"batch_size": 0}, "training.batch_size must be a whole number of at least 1"),
        ({"batch_size": True}, "training.batch_size must be a whole number"),
        ({"gradient_accumulation_steps": 3}, "not divisible by 3"),
        ({"world_size": 5}, "not divisible by 5"),
        ({"precision": "bf61"}, "did you mean 'bf16'"),
        ({"log_every": 0}, "log_every"),
        ({"keep_checkpoints": 0}, "keep_checkpoints"),
        ({"num_workers": -1}, "num_workers"),
        ({"compile": 3}, "training.compile must be true or false"),
        ({"batchsize": 3}, "did you mean 'batch_size'"),
    ],
)
def test_training_settings_refuse(changes: dict, message: str):
    with pytest.raises(UserError, match=message):
        training(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "sgd"}, "unknown optimizer.name"),
        ({"lr": 0}, "optimizer.lr must be a number above 0"),
        ({"lr": "fast"}, "optimizer.lr must be a number"),
        ({"betas": [0.9]}, "optimizer.betas"),
        ({"betas": [0.9, 1.0]}, "optimizer.betas"),
        ({"schedule": "linaer"}, "did you mean 'linear'"),
        ({"warmup_ratio": 1.0}, "warmup_ratio"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"max_grad_norm": 0}, "max_grad_norm"),
        ({"weight_decay": -1}, "weight_decay"),
        ({"eps": 0}, "eps"),
    ],
)
def test_optimizer_settings_refuse(changes: dict, message: str):
    with pytest.raises(UserError, match=message):
        optimizer(**changes)


@pytest.mark.parametrize("section", [{"batch_size": 0, "max_tokens": 1}, {"batch_size": 1, "max_tokens": "all"}, {}])
def test_evaluation_settings_refuse(section: dict):
    with pytest.raises(UserError, match=r"evaluation\."):
        evaluation_settings(section)


def test_budget_in_steps():
    assert Budget("steps", 7).steps(100, 3.0, 50.5) == 7
    assert Budget("tokens", 701).steps(100, 3.0, 50.5) == 8
    assert Budget("flops", 2100).steps(100, 3.0, 50.5) == 7
    assert Budget("tokens", 1).steps(100, 3.0, 50.5) == 1
    assert Budget("epochs", 3).steps(100, 3.0, 50.5) == 152
    assert Budget("epochs", 0.1).steps(100, 3.0, 30.0) == 3
    assert Budget("minutes", 7).steps(100, 3.0, 50.5) is None
