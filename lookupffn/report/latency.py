"""latency.json: what scripts/measure_latency.py writes and a comparison reads."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lookupffn.errors import UserError
from lookupffn.report.runs import Run, flatten, is_number, read_json

_IDENTITY = ("ffn", "ffn_options", "hidden_size", "num_hidden_layers", "intermediate_size")


@dataclass(frozen=True)
class Latency:
    """What one feed-forward's inference takes, in all layers of its model together.

    Attributes:
        us_per_token: microseconds a token.
        ratio: how many times as long GEMM took in the same process, by turns.
    """

    us_per_token: float
    ratio: float


@dataclass(frozen=True)
class Latencies:
    """A latency.json.

    Attributes:
        how: machine, threads and tokens a call, in words.
        by_identity: a measurement for each feed-forward (see ``identity``).
    """

    how: str
    by_identity: Mapping[Hashable, Latency]

    def of(self, run: Run) -> Latency | None:
        """The measurement of a run's feed-forward; None where it was not measured."""
        return self.by_identity.get(_key(identity(run)))


def identity(run: Run) -> dict[str, Any]:
    """What decides how long a run's feed-forward takes, as latency.json says it: name, options, sizes, layers.

    The model's intermediate size belongs to it because it is that of the GEMM beside which one measures.
    """
    sizes = {key: run.conditions.get(f"model.{key}") for key in _IDENTITY[2:]}
    return {"ffn": run.ffn, "ffn_options": dict(run.summary["ffn_options"]), **sizes}


def _key(values: Mapping[str, Any]) -> Hashable:
    return frozenset((key, value) for key, value in flatten(values) if value is not None)


def read_latencies(path: Path) -> Latencies:
    """A latency.json.

    Raises:
        UserError: it is missing or damaged.
    """
    content = read_json(path)
    found: dict[Hashable, Latency] = {}
    try:
        for entry in content["variants"]:
            numbers = entry["us_per_token"], entry["ratio"]
            if not all(is_number(number) and number > 0 for number in numbers):
                raise ValueError
            found[_key({name: entry[name] for name in _IDENTITY})] = Latency(*numbers)
        how = (
            f"{content['device_name']}, {content['threads']} thread{'' if content['threads'] == 1 else 's'}, "
            f"{content['tokens']:,} tokens a call"
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"damaged file {path}: not what scripts/measure_latency.py writes") from None
    return Latencies(how, found)
