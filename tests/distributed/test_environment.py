"""The config decides what is computed: accelerate's environment cannot change it in silence."""

from pathlib import Path

import pytest

from lookupffn.distributed.processes import start_accelerator
from lookupffn.errors import UserError
from tests.training.tiny import Workspace, metrics


@pytest.mark.parametrize(
    ("variable", "value", "advice"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "training.gradient_accumulation_steps"),
        ("ACCELERATE_DYNAMO_BACKEND", "inductor", "training.compile=true"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", "training.precision"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "not supported"),
        ("ACCELERATE_USE_MEGATRON_LM", "true", "not supported"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "not supported"),
        ("ACCELERATE_FP8_BACKEND", "TE", "not supported"),
    ],
)
def test_what_the_config_does_not_say_is_refused(
    variable: str, value: str, advice: str, tiny: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=f"{variable}={value} in the environment .*{advice}"):
        tiny.train(f"output_dir={tmp_path}/run")
    assert not (tmp_path / "run").exists()


def test_what_accelerate_launch_sets_by_itself_changes_nothing(
    tiny: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    more = ("training.gradient_accumulation_steps=2", "training.log_every=1")
    tiny.train(*more, f"output_dir={tmp_path}/alone")
    for variable, value in {
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
        "ACCELERATE_DYNAMO_BACKEND": "NO",
        "ACCELERATE_DYNAMO_MODE": "default",
        "ACCELERATE_MIXED_PRECISION": "no",
        "ACCELERATE_USE_FSDP": "false",
        "ACCELERATE_CPU_AFFINITY": "False",
    }.items():
        monkeypatch.setenv(variable, value)
    tiny.train(*more, f"output_dir={tmp_path}/launched")
    assert metrics(tmp_path / "launched") == metrics(tmp_path / "alone")


def test_an_evaluation_is_in_float32_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert start_accelerator().mixed_precision == "no"
