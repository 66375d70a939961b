import pytest

from lookupffn.config.sections import read_section
from lookupffn.errors import UserError
from tests.training.tiny import section


def training(world_size: int = 1, **changes):
    settings = read_section("training", {**section("training"), **changes})
    settings.check_processes(world_size)
    return settings


def optimizer(**changes):
    return read_section("optimizer", {**section("optimizer"), **changes})


def test_defaults_and_whole_numbers_written_as_floats():
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
        read_section("evaluation", section)
