"""Feed-forwards of other packages: entry points of the group ``lookupffn.feed_forwards``.

A package that has, in its pyproject.toml,

    [project.entry-points."lookupffn.feed_forwards"]
    swiglu = "my_package.swiglu:SwiGLU"

and my_package/configs/ffn/swiglu.yaml adds ``ffn=swiglu`` to every command, and its race members to the races.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from functools import cache
from importlib.metadata import EntryPoint
from pathlib import Path

GROUP = "lookupffn.feed_forwards"


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
