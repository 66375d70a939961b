"""What inference takes: times measured on this machine (latency.json), or projected to one that one does not have.

Both are JSON files of one form, written by scripts/measure_latency.py and by scripts/project_hardware.py:
{"device_name", "threads", "tokens", "projected" (true or absent), "variants": [{"ffn", "ffn_options", "hidden_size",
"num_hidden_layers", "intermediate_size", "us_per_token", "ratio"}]}.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lookupffn.errors import UserError
from lookupffn.report.fine_tuned import FineTuned
from lookupffn.report.runs import Run, flat, is_number, stated
from lookupffn.storage import read_json

SIZES = ("hidden_size", "num_hidden_layers", "intermediate_size")
_IDENTITY = ("ffn", "ffn_options", *SIZES)


@dataclass(frozen=True)
class InferenceTime:
    """What one feed-forward's inference takes, in all layers of its model together.

    Attributes:
        us_per_token: microseconds a token.
        ratio: GEMM's time over it: measured alternately in the same process, or projected to the same machine.
    """

    us_per_token: float
    ratio: float


@dataclass(frozen=True)
class InferenceTimes:
    """The times on one machine.

    Attributes:
        device: the machine's name.
        how: machine, threads and tokens a call, in words.
        projected: whether they were computed from the machine's data and not measured on it.
        by_identity: a time for each feed-forward (see ``identity``).
    """

    device: str
    how: str
    projected: bool
    by_identity: Mapping[Hashable, InferenceTime]

    def of(self, run: Run | FineTuned) -> InferenceTime | None:
        """The time of a run's feed-forward; None where there is none."""
        return self.by_identity.get(_key(identity(run)))


def identity(run: Run | FineTuned) -> dict[str, Any]:
    """What decides how long a run's feed-forward takes: name, options, sizes, layers.

    The model's intermediate size belongs to it because it is that of the GEMM beside which one measures.
    """
    sizes = {key: run.conditions.get(f"model.{key}") for key in SIZES}
    return {"ffn": run.ffn, "ffn_options": dict(run.summary["ffn_options"]), **sizes}


def _key(values: Mapping[str, Any]) -> Hashable:
    return frozenset(stated(flat(values)).items())


def read_times(path: Path) -> InferenceTimes:
    """A file of inference times.

    Raises:
        UserError: it is missing or damaged.
    """
    return times_from(read_json(path), str(path))


def times_from(content: Mapping[str, Any], source: str) -> InferenceTimes:
    """What such a file holds.

    Args:
        content: its JSON object.
        source: what to call it in messages.

    Raises:
        UserError: it is something else.
    """
    found: dict[Hashable, InferenceTime] = {}
    try:
        for entry in content["variants"]:
            numbers = entry["us_per_token"], entry["ratio"]
            if not all(is_number(number) and number > 0 for number in numbers):
                raise ValueError
            found[_key({name: entry[name] for name in _IDENTITY})] = InferenceTime(*numbers)
        device, projected = str(content["device_name"]), bool(content.get("projected"))
        how = (
            f"{device}, {content['threads']} thread{'' if content['threads'] == 1 else 's'}, "
            f"{content['tokens']:,} tokens a call{', projected' if projected else ''}"
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"damaged file {source}: not what scripts/measure_latency.py writes") from None
    return InferenceTimes(device, how, projected, found)
