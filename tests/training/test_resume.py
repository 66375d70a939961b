"""Exact resume for every registered feed-forward, and with lookups in attention."""

from pathlib import Path

import pytest
import torch

from lookupffn.layers import ffn_names
from tests.training.test_loop import killed_run
from tests.training.tiny import Workspace, metrics, weights

OPTIONS = {
    "lookup": ("ffn.num_tables=4", "ffn.table_size=16"),
    "slide": ("ffn.bits=3", "ffn.num_tables=4"),
    "mongoose": ("ffn.bits=3", "ffn.num_tables=4"),
    "lookups in attention": ("model.attention_projection=lookup", "model.attention_tables=4", "ffn.num_tables=4"),
}


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("hidden_size", [32, 128])
@pytest.mark.parametrize("name", [*ffn_names(), "lookups in attention"])
def test_a_killed_run_ends_as_one_that_was_left_alone(
    name: str, hidden_size: int, tiny: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ffn = "lookup" if name == "lookups in attention" else name
    more = (
        f"ffn={ffn}", *OPTIONS.get(name, ()), f"model.hidden_size={hidden_size}", "model.hidden_dropout_prob=0.1",
        "training.validate_every=6", "training.checkpoint_every=2", "training.log_every=1",
    )  # fmt: skip
    tiny.train(*more, f"output_dir={tmp_path}/whole")
    killed_run(tiny, monkeypatch, 3, *more, f"output_dir={tmp_path}/broken")
    tiny.train(*more, f"output_dir={tmp_path}/broken")
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "whole")
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []
