"""Checkpoints whose seal is valid and whose fields are not: one line on resume, before a step is made."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lookupffn.errors import UserError
from lookupffn.runs.checkpoint import METADATA_FILE, STATE_FILE, load_state, newest_checkpoint, sealed
from lookupffn.storage import digests
from lookupffn.training.optimizer import check_state
from lookupffn.training.state import TrainState
from tests.training.test_loop import killed_run
from tests.training.tiny import Workspace

LINE = {"step": 3, "loss": 1.5, "learning_rate": 0.1, "tokens_per_s": 9.0}
RIGHT = {"step": 3, "tokens": 7, "recent_losses": [1, 2.5], "unvalidated": LINE, "aside_s": {"checkpoint": 0.5}}


@pytest.mark.parametrize("name", TrainState.__dataclass_fields__)
@pytest.mark.parametrize("value", ["text", [None], {"a": []}, -1, True, [{"step": "2"}], {"step": "1"}, 1e999])
def test_a_field_of_another_type_is_refused(name: str, value: object):
    assert TrainState.from_record(RIGHT).recent_losses == [1, 2.5]
    with pytest.raises(UserError, match=f"damaged checkpoint: {name} in its checkpoint.json"):
        TrainState.from_record({**RIGHT, name: value})


def test_a_mean_of_no_losses_comes_back():
    assert math.isnan(TrainState.from_record({"unvalidated": {**LINE, "loss": None}}).unvalidated["loss"])


def adamw() -> torch.optim.AdamW:
    parameters = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2, 2))]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.AdamW([{"params": [p], "lr_scale": 1.0} for p in parameters])
    optimizer.step()
    return optimizer


SPOILS: dict[str, Callable[[dict], object]] = {
    "average": lambda state: state["state"][1].update(exp_avg="text"),
    "scalar average": lambda state: state["state"][1].update(exp_avg=torch.tensor(1.0)),
    "integers": lambda state: state["state"][0].update(exp_avg_sq=torch.ones(3, dtype=torch.int64)),
    "no average": lambda state: state["state"][0].pop("exp_avg"),
    "step": lambda state: state["state"][0].update(step=[1]),
    "more parameters": lambda state: state["state"].update({7: state["state"][0]}),
    "rate": lambda state: state["param_groups"][0].update(lr="fast"),
    "betas": lambda state: state["param_groups"][0].update(betas=(None, 0.9)),
    "flag": lambda state: state["param_groups"][0].update(amsgrad="yes"),
    "the same parameter twice": lambda state: state["param_groups"][1].update(params=[0]),
    "groups": lambda state: state.update(param_groups=3),
    "values": lambda state: state.update(state=[]),
}


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS)
def test_an_optimizer_state_of_another_form_is_refused(spoil: Callable[[dict], object]):
    state = adamw().state_dict()
    check_state(adamw(), state)
    spoil(state)
    with pytest.raises(UserError, match="the optimizer's state is not that of this model"):
        check_state(adamw(), state)


@pytest.mark.parametrize("spoilt", ["record", "state"])
def test_a_run_with_such_a_checkpoint_ends_in_one_line(
    spoilt: str, tiny: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "run"
    killed_run(tiny, monkeypatch, 5, f"output_dir={folder}")
    path, document = newest_checkpoint(folder / "checkpoints")
    if spoilt == "record":
        document["recent_losses"] = "none"
    else:
        state = load_state(path)
        state["optimizer"]["state"][0]["exp_avg"] = "text"
        torch.save(state, path / STATE_FILE)
        document["sha256"] = {name: digest for name, digest in digests(path).items() if name != METADATA_FILE}
    (path / METADATA_FILE).write_text(sealed(document))
    with pytest.raises(UserError, match=r"damaged checkpoint|not that of this model"):
        tiny.train(f"output_dir={folder}")
