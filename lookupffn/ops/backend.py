"""The one place that chooses which implementation of an operation runs.

An operation registers its implementations by backend name; ``select`` picks one for a device. The environment variable
LOOKUPFFN_BACKEND forces a backend (``auto``, the default, takes the fastest that serves the device).
"""

import os
from collections.abc import Callable

from lookupffn.errors import UserError, unknown_name

_PREFERENCE = ("reference",)  # fastest first
_IMPLEMENTATIONS: dict[str, dict[str, Callable]] = {}


def register(operation: str, backend: str) -> Callable[[Callable], Callable]:
    """Decorator: make a function the implementation of ``operation`` on ``backend``."""

    def add(function: Callable) -> Callable:
        _IMPLEMENTATIONS.setdefault(operation, {})[backend] = function
        return function

    return add


def select(operation: str) -> Callable:
    """The implementation of ``operation`` to run.

    Raises:
        UserError: LOOKUPFFN_BACKEND names a backend that does not exist, or lacks this operation.
    """
    wanted = os.environ.get("LOOKUPFFN_BACKEND", "auto")
    if wanted != "auto" and wanted not in _PREFERENCE:
        raise unknown_name("backend in LOOKUPFFN_BACKEND", wanted, ("auto", *_PREFERENCE))
    available = _IMPLEMENTATIONS[operation]
    for backend in _PREFERENCE if wanted == "auto" else (wanted,):
        if backend in available:
            return available[backend]
    raise UserError(f"LOOKUPFFN_BACKEND={wanted} has no {operation}; use auto")
