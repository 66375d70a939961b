"""The short form of the soak, and that it would notice."""

import json
import random
import shutil
from pathlib import Path

import pytest

from tests.scripts.loading import load_script
from tests.training.tiny import Workspace, workspace


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return workspace(tmp_path_factory.getbasetemp())


@pytest.mark.slow
def test_three_kills_change_nothing(tiny: Workspace, tmp_path: Path):
    soak = load_script("soak")
    overrides = [o for o in tiny.overrides("training.max_steps=200", "training.validate_every=30") if "cache" not in o]
    assert soak.soak(tmp_path, 3, random.Random(1), overrides) == []
    whole, disturbed = tmp_path / "whole", tmp_path / "disturbed-0"
    assert soak.compare(whole, disturbed) == []

    # what it would say
    lines = (disturbed / "metrics.jsonl").read_text().splitlines()
    (disturbed / "metrics.jsonl").write_text("\n".join([*lines[:3], lines[2], *lines[3:]]) + "\n")
    assert [found.partition(": ")[2] for found in soak.compare(whole, disturbed)] == [
        "a step is logged twice", f"metrics differ from step {json.loads(lines[2])['step']}",
    ]  # fmt: skip
    shutil.copy(disturbed / "checkpoints" / "step-00000198" / "model.safetensors", disturbed / "model")
    assert any("weights differ" in found for found in soak.compare(whole, disturbed))
