from types import SimpleNamespace

import pytest

from lookupffn.config.sections import read_section
from lookupffn.training.budget import Budget, choose_budget
from tests.training.tiny import section


@pytest.mark.parametrize(
    ("changes", "budget"),
    [
        ({}, Budget("steps", 6000)),
        ({"max_tokens": 1e6}, Budget("tokens", 1e6)),
        ({"max_epochs": 3, "max_steps": 200}, Budget("epochs", 3)),
        ({"max_epochs": 3, "max_steps": 149}, Budget("steps", 149)),
        ({"max_minutes": 5, "max_steps": None}, Budget("minutes", 5)),
    ],
)
def test_the_budget_that_ends_a_run(changes: dict, budget: Budget):
    settings = read_section("training", {**section("training"), **changes})
    assert choose_budget(settings, SimpleNamespace(steps_per_epoch=50)) == budget


def test_budget_in_steps():
    assert Budget("steps", 7).steps(100, 3.0, 50.5) == 7
    assert Budget("tokens", 701).steps(100, 3.0, 50.5) == 8
    assert Budget("flops", 2100).steps(100, 3.0, 50.5) == 7
    assert Budget("tokens", 1).steps(100, 3.0, 50.5) == 1
    assert Budget("epochs", 3).steps(100, 3.0, 50.5) == 152
    assert Budget("epochs", 0.1).steps(100, 3.0, 30.0) == 3
    assert Budget("minutes", 7).steps(100, 3.0, 50.5) is None
