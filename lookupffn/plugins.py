"""What other packages plug in here, and how transformers comes to know the models here.

A package that has, in its pyproject.toml,

    [project.entry-points."lookupffn.feed_forwards"]
    swiglu = "my_package.swiglu:SwiGLU"

and my_package/configs/ffn/swiglu.yaml adds ``ffn=swiglu`` to every command, and its race members to the races.

``import lookupffn`` takes a moment and must not import torch; ``AutoModel.from_pretrained`` must work after it all the
same. So transformers is given a stand-in for the configuration, which imports the models when it is first used.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Sequence
from functools import cache
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

GROUP = "lookupffn.feed_forwards"
MODEL_TYPE = "lookup-roberta"
_AUTO = "transformers.models.auto.configuration_auto"


def feed_forwards() -> dict[str, EntryPoint]:
    """The entry points by name; nothing of the packages is imported."""
    return _found(tuple(sys.path))


@cache
def _found(path: tuple[str, ...]) -> dict[str, EntryPoint]:
    return {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}


def config_folders() -> list[Path]:
    """The configs/ folders of the packages that the entry points are in."""
    folders: dict[Path, None] = {}
    for point in feed_forwards().values():
        # the outermost package: finding one inside it would import it
        spec = importlib.util.find_spec(point.module.partition(".")[0])
        for place in (spec and spec.submodule_search_locations) or ():
            if (folder := Path(place) / "configs").is_dir():
                folders.setdefault(folder)
    return list(folders)


class _Configuration:
    """Stands for LookupRobertaConfig until that is imported, which then takes its place."""

    model_type = MODEL_TYPE

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return _configuration()(*args, **kwargs)

    @classmethod
    def from_dict(cls, *args: Any, **kwargs: Any) -> Any:
        """As of the class that it stands for."""
        return _configuration().from_dict(*args, **kwargs)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As of the class that it stands for."""
        return _configuration().from_pretrained(*args, **kwargs)


def _configuration() -> Any:
    return importlib.import_module("lookupffn.models").LookupRobertaConfig


def register_models() -> None:
    """Registers the stand-in: now where transformers' Auto classes are imported already, else when they are."""
    if _AUTO in sys.modules:
        _register(sys.modules[_AUTO])
    elif not any(isinstance(finder, _AfterAutoClasses) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterAutoClasses())


def _register(auto: ModuleType) -> None:
    if MODEL_TYPE not in auto.CONFIG_MAPPING:
        auto.AutoConfig.register(MODEL_TYPE, _Configuration)


class _AfterAutoClasses(MetaPathFinder):
    """Finds nothing itself; registers after the module that others find."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See MetaPathFinder."""
        if fullname != _AUTO:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Registering(spec.loader)
        return spec


class _Registering(Loader):
    """Another loader, and the registration after it."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """See Loader."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """See Loader."""
        module.__loader__ = module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        _register(module)
