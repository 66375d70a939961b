"""One config, and one batch, followed through the code: how often it returns to a room that it has left."""

import dataclasses
import sys
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import yaml
from yaml.representer import SafeRepresenter

import lookupffn
from lookupffn.config import data, run, sections
from lookupffn.training import run as training
from lookupffn.training.step import Updater
from lookupffn.training.trainer import Trainer
from tests.training.tiny import Workspace

PACKAGE = Path(lookupffn.__file__).parent
A_FEW = 3


def room(file: str) -> str | None:
    """The room that a source file is in; None outside of the package."""
    path = Path(file)
    return path.relative_to(PACKAGE).parts[0] if path.is_relative_to(PACKAGE) else None


def returns(rooms: list[str]) -> Counter[str]:
    """How often each room is entered again, from the rooms in order."""
    return Counter(name for name, _ in groupby(rooms)) - Counter(set(rooms))


class Watched(dict):
    """Plain values that note which room reads them."""

    notes: list[str]

    def _note(self) -> None:
        frame = sys._getframe(2)
        while (found := room(frame.f_code.co_filename)) is None:
            frame = frame.f_back
        self.notes.append(found)

    def __getitem__(self, key: str) -> Any:
        self._note()
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self._note()
        return super().get(key, default)

    def items(self) -> Any:
        self._note()
        return super().items()


def watched(values: Any) -> Any:
    return Watched({name: watched(value) for name, value in values.items()}) if isinstance(values, dict) else values


def watch(cls: type, notes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Notes which room reads a field of a section."""
    fields = {field.name for field in dataclasses.fields(cls)}
    usual = cls.__getattribute__

    def get(self: Any, name: str) -> Any:
        # the configuration of a model, which has some of the fields too, is no part of the run's config
        if name in fields and type(self).__module__.startswith("lookupffn.config"):
            found = room(sys._getframe(1).f_code.co_filename)
            if found is not None:
                notes.append(found)
        return usual(self, name)

    monkeypatch.setattr(cls, "__getattribute__", get)


def test_one_config_returns_to_a_room_a_few_times_at_most(
    tiny: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    notes: list[str] = []
    monkeypatch.setattr(Watched, "notes", notes, raising=False)
    monkeypatch.setitem(yaml.SafeDumper.yaml_representers, Watched, SafeRepresenter.represent_dict)
    resolve = run.resolve
    monkeypatch.setattr(training, "resolve", lambda *arguments: watched(resolve(*arguments)))
    for cls in {cls for module in (run, sections, data) for cls in vars(module).values() if isinstance(cls, type)}:
        if dataclasses.is_dataclass(cls):
            watch(cls, notes, monkeypatch)
    tiny.train("training.max_steps=2", f"output_dir={tmp_path}/run")
    assert {"config", "training", "objectives", "data", "models", "runs"} <= set(notes)
    again = returns(["config", *notes])  # resolved there
    assert all(count <= A_FEW for count in again.values()), (again, " ".join(name for name, _ in groupby(notes)))


def test_one_batch_returns_to_a_room_a_few_times_at_most(
    tiny: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    notes: list[str] = []

    def note(frame: Any, event: str, _: Any) -> None:
        if event == "call" and (found := room(frame.f_code.co_filename)) is not None:
            notes.append(found)

    step, update = Trainer.train_step, Updater.update

    def from_the_data(self: Trainer, *arguments: Any) -> Any:
        sys.setprofile(note if self.state.step == 1 else None)  # the first step also sets things up
        return step(self, *arguments)

    def to_the_weights(self: Updater, *arguments: Any, **more: Any) -> Any:
        try:
            return update(self, *arguments, **more)
        finally:
            sys.setprofile(None)

    monkeypatch.setattr(Trainer, "train_step", from_the_data)
    monkeypatch.setattr(Updater, "update", to_the_weights)
    tiny.train("training.max_steps=2", "training.num_workers=0", f"output_dir={tmp_path}/run")
    assert {"training", "objectives", "data", "models", "layers", "ops"} <= set(notes)
    again = returns(notes)
    assert all(count <= A_FEW for count in again.values()), (again, " ".join(name for name, _ in groupby(notes)))
