"""What accelerate's environment asks for: computation that the config does not name is refused.

``accelerate launch`` and ``accelerate config`` pass on their settings in variables, which accelerate prefers to the
arguments of the program that it starts.
"""

from __future__ import annotations

import os

from lookupffn.errors import UserError

MIXED_PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
_NONE = ("", "no", "none", "false", "0")
# engines and modes that nothing here trains or tests with
_UNSUPPORTED = (
    "ACCELERATE_USE_DEEPSPEED",
    "ACCELERATE_USE_MEGATRON_LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG",
    "ACCELERATE_USE_SAGEMAKER",
    "ACCELERATE_DOWNCAST_BF16",
    "ACCELERATE_FP8_BACKEND",
    "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION",
    "XLA_USE_BF16",
    "XLA_DOWNCAST_BF16",
)


def refuse_environment(precision: str | None, accumulation: int) -> None:
    """Refuses variables that would make accelerate compute something else than the config says.

    Args:
        precision: training.precision; None where the precision is not the config's to choose.
        accumulation: micro-batches of a step.

    Raises:
        UserError: there is such a variable.
    """
    _refuse("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", (*_NONE, "1", "auto", str(accumulation)),
            "set training.gradient_accumulation_steps instead")  # fmt: skip
    _refuse("ACCELERATE_DYNAMO_BACKEND", _NONE, "set training.compile=true instead")
    if precision is not None:
        _refuse("ACCELERATE_MIXED_PRECISION", (*_NONE, MIXED_PRECISION[precision]),
                "set training.precision instead")  # fmt: skip
    for variable in _UNSUPPORTED:
        _refuse(variable, _NONE, "this is not supported")


def _refuse(variable: str, neutral: tuple[str, ...], advice: str) -> None:
    value = os.environ.get(variable, "")
    if value.lower() not in neutral:
        raise UserError(
            f"{variable}={value} in the environment (accelerate launch and accelerate config set it) asks for what the "
            f"config does not say: unset it; {advice}"
        )
