"""The `data` section: what every corpus takes, and what each takes beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lookupffn.config.schema import option
from lookupffn.config.sections import SHORTEST_SEQUENCE, read_choice
from lookupffn.errors import UserError


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What every corpus takes."""

    name: str = option()
    sequence_length: int = option(128, at_least=SHORTEST_SEQUENCE)
    mask_rate: float = option(0.15, above=0, below=1)

    def check(self) -> None:
        """Compares the options with each other."""
        masked_count(self.mask_rate, self.sequence_length)


@dataclass(frozen=True, kw_only=True)
class PackageTextSettings(DataSettings):
    """`data=docstrings` and `data=comments`."""

    validation_fraction: float = option(0.05, at_least=0, below=1)
    roots: list[str] | str | None = None


@dataclass(frozen=True, kw_only=True)
class TextSettings(DataSettings):
    """`data=text`."""

    train_files: list[str] | str | None = None
    validation_files: list[str] | str | None = None
    validation_fraction: float = option(0.05, at_least=0, below=1)
    text_field: str | int | None = option("text")


@dataclass(frozen=True, kw_only=True)
class HubSettings(DataSettings):
    """`data=wikitext103`: a corpus of the hub with a validation split of its own."""

    revision: str | None = option(None)
    shard_characters: int = option(64_000_000, at_least=1)


@dataclass(frozen=True, kw_only=True)
class SplitHubSettings(HubSettings):
    """`data=wikipedia`: a corpus of the hub of which a fraction is held out."""

    validation_fraction: float = option(0.005, at_least=0, below=1)


SOURCES: dict[str, type[DataSettings]] = {
    "docstrings": PackageTextSettings,
    "comments": PackageTextSettings,
    "text": TextSettings,
    "wikitext103": HubSettings,
    "wikipedia": SplitHubSettings,
}


def data_settings(section: Mapping[str, Any]) -> DataSettings:
    """The data section, checked; nothing is read of the corpus.

    Raises:
        UserError: an unknown corpus or option, or a value that cannot be.
    """
    return read_choice("data", section, SOURCES)


def masked_count(mask_rate: float, sequence_length: int) -> int:
    """M, the masked tokens of a sequence of L.

    Raises:
        UserError: the rate leaves nothing to mask.
    """
    count = round(mask_rate * sequence_length)
    if count < 1:
        raise UserError(f"data.mask_rate {mask_rate} masks nothing in sequences of {sequence_length}: raise one")
    return count
