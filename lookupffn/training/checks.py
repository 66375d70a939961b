"""The one check of a whole config: every value that can be refused before the data is prepared, in one line each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lookupffn.config.schema import read
from lookupffn.config.sections import TrainingSettings, optimizer_settings, training_settings
from lookupffn.errors import UserError
from lookupffn.objectives import Objective
from lookupffn.training.tracking import check_tracker


def check_config(config: Mapping[str, Any], objective_class: type[Objective]) -> TrainingSettings:
    """Refuses what can be refused before the data is prepared.

    Args:
        config: the resolved config.
        objective_class: checks the sections that are its own.

    Raises:
        UserError: a value that cannot be.
    """
    outside = {key: value for key, value in config.items() if not isinstance(value, dict)}
    read(objective_class.run_settings, outside, "", "setting")
    settings = training_settings(config["training"], 1)
    optimizer_settings(config["optimizer"])
    check_tracker(config["tracker"])
    objective_class.check(config)
    if settings.precision == "fp16" and not torch.cuda.is_available():
        raise UserError("training.precision=fp16 needs a GPU; on this machine use fp32 or bf16")
    return settings
