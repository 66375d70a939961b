"""Sweeps: which member runs, in what the members differ, and a table of what came of them."""

from __future__ import annotations

import json
import logging
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lookupffn.cli.command_line import Command, Configs, compose, composing, expanded
from lookupffn.cli.output import configure_logging
from lookupffn.cli.parallel import JOBLIB, parent_of_member, stopping_together
from lookupffn.cli.progress import noting_progress
from lookupffn.config.race import without_race

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sweep:
    """What all members of a sweep know, in whatever process they run.

    Attributes:
        size: how many members there are; None where the sweeper decides on the way.
        swept: what the user gave several values for, as "ffn", "seed".
        differing: the settings that are not the same in all members, as "ffn.num_tables", "seed".
        results: the names of the figures that the table shows and that a sweeper may minimise or maximise.
        shown: the names of those that the table shows where members have them.
        folder: where members leave notes of their progress, their failures, and their figures for the table.
        pid: of the process that runs the sweep.
    """

    size: int | None
    swept: tuple[str, ...]
    differing: tuple[str, ...]
    results: tuple[str, ...]
    shown: tuple[str, ...]
    folder: Path
    pid: int

    @contextmanager
    def member(self) -> Iterator[None]:
        """Around what a member does: says which one begins, notes how far it is, and stops it with the others."""
        _State.sweep = self
        number, parent = HydraConfig.get().job.num, parent_of_member(self.pid)
        with stopping_together(self.folder, parent), noting_progress(self._notes(), parent):
            of = "" if self.size is None else f" of {self.size}"
            own = [f"{name}={value}" for name, value in self._own_settings().items()]
            configure_logging()
            logger.info("member %d%s: %s", number + 1, of, " ".join(own))
            if parent is not None:
                configure_logging(f"member {number + 1}: ")
            yield

    def _notes(self) -> Path:
        """Of this member; what is known of it has this name and a suffix."""
        return self.folder / f"{HydraConfig.get().job.num:06d}"

    def note_failure(self, message: str) -> None:
        """Keeps why this member failed."""
        self._notes().with_suffix(".failed").write_text(message, encoding="utf-8")

    def failures(self) -> list[str]:
        """Why members failed, in their order."""
        return [path.read_text(encoding="utf-8") for path in sorted(self.folder.glob("*.failed"))]

    def _own_settings(self) -> dict[str, str]:
        """What this member has of that which is swept."""
        given = dict(text.lstrip("+").partition("=")[::2] for text in HydraConfig.get().overrides.task)
        return {name: given[name] for name in self.swept if name in given}

    def end_member(self, figures: Mapping[str, Any] | None) -> tuple[float, ...] | None:
        """Notes a member's figures for the table; returns those that a sweeper may minimise or maximise."""
        if figures is None:  # not the main process
            return None
        own = self._own_settings()
        found = tuple(figures.get(name) for name in self.results)
        shown = map(figures.get, self.shown)
        row = [*(own.get(name, "") for name in self.swept), *map(_number, (*found, *shown))]
        self._notes().with_suffix(".json").write_text(json.dumps(row), encoding="utf-8")
        return found or None

    def table(self) -> str:
        """The members that have ended, a line each; empty where none has."""
        rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(self.folder.glob("*.json"))]
        if not rows or not self.results:
            return ""
        rows = [[*self.swept, *self.results, *self.shown], *rows]
        kept = [i for i in range(len(rows[0])) if rows[0][i] not in self.shown or any(row[i] for row in rows[1:])]
        rows = [[row[i] for i in kept] for row in rows]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        names = len(self.swept)
        lines = [
            "  ".join(
                text.ljust(width) if i < names else text.rjust(width)
                for i, (text, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]]) + "\n"


class _State:
    """Of this process: the sweep whose member it runs."""

    sweep: Sweep | None = None


def differing_settings() -> tuple[str, ...]:
    """Inside a member of a sweep, the settings in which its members differ; nothing outside of one."""
    return () if _State.sweep is None else _State.sweep.differing


def plan_sweep(
    config_name: str, command: Command, scratch: Path, results: Sequence[str], shown: Sequence[str] = ()
) -> Sweep:
    """What is known of a sweep before its first member runs."""
    sweeping = [override for override in command.overrides if override.is_sweep_override()]
    counts = [len(expanded(override)) for override in sweeping]
    return Sweep(
        size=prod(counts) if all(counts) and _is_grid(config_name, command) else None,
        swept=tuple(override.get_key_element() for override in sweeping),
        differing=tuple(_differing(config_name, command)),
        results=tuple(results),
        shown=tuple(shown),
        folder=scratch / "members",
        pid=os.getpid(),
    )


def _is_grid(config_name: str, command: Command) -> bool:
    return "._internal." in hydra_settings(config_name, command).sweeper["_target_"]


def _differing(config_name: str, command: Command) -> list[str]:
    """The settings that some swept override changes, all others being at their first value."""
    # imported here because a command that runs once can do without it, and without torch until it runs
    from lookupffn.runs.records import flatten

    values = [found for override in command.overrides if (found := expanded(override))]
    first = [found[0] for found in values]
    configs = command.configs or Configs(config_name)
    # by setting and, for the options of a feed-forward, by its name: those of two are no difference between them
    seen: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    with composing():
        for place, found in enumerate(values):
            for override in found if len(found) > 1 else ():
                config = _plain(configs.of([*first[:place], override, *first[place + 1 :]]))
                ffn = str(config.get("ffn", {}).get("name"))
                for name, value in flatten(config):
                    seen[name][ffn if name.startswith("ffn.") else ""].add(repr(value))
    return [name for name, kinds in seen.items() if any(len(texts) > 1 for texts in kinds.values())]


def _plain(cfg: DictConfig) -> dict[str, Any]:
    cfg = without_race(cfg)
    try:
        return OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException:  # an interpolation of something that is known only at run time
        return OmegaConf.to_container(cfg)


def hydra_settings(config_name: str, command: Command) -> DictConfig:
    """Hydra's own part of the config that a command line composes: launcher, sweeper, folders."""
    lines = [override.input_line for override in command.overrides if not override.is_sweep_override()]
    with composing():
        return compose(config_name, lines, with_hydra=True).hydra


def runs_here(settings: DictConfig) -> bool:
    """Whether a sweep is a grid whose members run in this process or in others on this machine that leave no logs."""
    launcher, sweeper = (settings[part]["_target_"] for part in ("launcher", "sweeper"))
    return "._internal." in sweeper and ("._internal." in launcher or launcher.endswith(JOBLIB))


def lasting_folder() -> Path:
    """Where engines other than Hydra's own keep scripts, logs and results of one sweep: below outputs/, by the time."""
    return Path("outputs", "sweeps", time.strftime("%Y-%m-%d-%H%M%S")).resolve()


def _number(value: Any) -> str:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "" if value is None else str(value)
    if isinstance(value, int) or abs(value) >= 10_000:
        return f"{value:,.0f}"
    return f"{value:#.4g}".removesuffix(".")
