"""Paths that a user typed, made to mean the same from any folder."""

from __future__ import annotations

import os
from typing import Any

from lookupffn.errors import UserError


def path_text(name: str, value: object) -> str | None:
    """A path that the user typed, ``~`` filled in; a folder may well be called 2024.

    Raises:
        UserError: the value is something else, such as nan.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and value.startswith("~"):
        return os.path.expanduser(value)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{name} must be a path, not {value!r}: to call it that, write {name}=./{value}")
    return value or None


def absolute_paths(data: dict[str, Any]) -> None:
    """Rewrites the files of a data or task section so that they mean the same from any folder."""
    for name in ("train_files", "validation_files", "data"):
        files = data.get(name)
        if isinstance(files, str):
            data[name] = absolute(files)
        elif isinstance(files, list):
            data[name] = [absolute(str(file)) for file in files]


def absolute(path: str) -> str:
    """A path or glob that means the same from any folder."""
    return os.path.abspath(os.path.expanduser(path))
