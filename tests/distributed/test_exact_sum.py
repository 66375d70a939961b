"""The same losses on any number of processes, dropout and all."""

from pathlib import Path

import pytest
import torch

from lookupffn.config.sections import training_settings
from lookupffn.errors import UserError
from tests.distributed.test_processes import TRAIN, end, start, torchrun
from tests.training.tiny import Workspace, metrics, section, weights

pytestmark = pytest.mark.usefixtures("one_thread")

MORE = ("training.max_steps=12", "training.log_every=1", "training.validate_every=6", "training.micro_batches=4",
        "model.hidden_dropout_prob=0.1", "ffn.num_tables=16", "ffn.table_size=64")  # fmt: skip


@pytest.mark.slow
def test_one_and_two_processes_learn_the_same_weights(tiny: Workspace, tmp_path: Path):
    one, two = tmp_path / "one", tmp_path / "two"
    output = end(start(*torchrun(2), TRAIN, *tiny.overrides(*MORE, f"output_dir={two}"), cwd=tmp_path))
    assert (two / "summary.json").exists(), output
    tiny.train(*MORE, f"output_dir={one}")
    for ours, theirs in zip(metrics(two), metrics(one), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-7)
        assert ours.get("validation_loss", 0) == pytest.approx(theirs.get("validation_loss", 0), rel=1e-7)
    for name, weight in weights(one).items():
        assert torch.allclose(weight, weights(two)[name], rtol=1e-6, atol=1e-9), name


def test_parts_make_no_difference_to_what_is_learned(tiny: Workspace, tmp_path: Path):
    few = ("training.max_steps=4", "training.log_every=1")
    tiny.train(*few, f"output_dir={tmp_path}/plain")
    tiny.train(*few, "training.micro_batches=4", f"output_dir={tmp_path}/parts")
    for ours, theirs in zip(metrics(tmp_path / "parts"), metrics(tmp_path / "plain"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "world_size", "message"),
    [
        ({"micro_batches": 0}, 1, "at least 1"),
        ({"micro_batches": 3}, 1, "must divide batch_size=64"),
        ({"micro_batches": 4}, 8, "a multiple of the 8 processes"),
        ({"micro_batches": 4, "gradient_accumulation_steps": 2}, 1, "both set"),
    ],
)
def test_parts_that_cannot_be(changes: dict, world_size: int, message: str):
    with pytest.raises(UserError, match=message):
        training_settings({**section("training"), **changes}, world_size)
