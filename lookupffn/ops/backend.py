"""The one place that chooses which implementation of an operation runs.

An operation registers its implementations by backend name, each with a test of what it serves; ``select`` picks the
fastest that serves the arguments. The environment variable LOOKUPFFN_BACKEND forces one: ``auto`` (the default),
``reference``, or ``cpu`` (the C++ kernels, compiled at first use).
"""

import os
from collections.abc import Callable
from typing import Any

from lookupffn.errors import UserError, unknown_name

_PREFERENCE = ("cpu", "reference")  # fastest first
_IMPLEMENTATIONS: dict[str, dict[str, tuple[Callable, Callable[..., bool]]]] = {}


def _always(*_: Any) -> bool:
    return True


def register(operation: str, backend: str, serves: Callable[..., bool] = _always) -> Callable[[Callable], Callable]:
    """Decorator: make a function the implementation of ``operation`` on ``backend``.

    Args:
        operation: its name.
        backend: one of the names above.
        serves: given the operation's arguments, whether this implementation takes them.
    """

    def add(function: Callable) -> Callable:
        _IMPLEMENTATIONS.setdefault(operation, {})[backend] = (function, serves)
        return function

    return add


def wanted_backend() -> str:
    """The value of LOOKUPFFN_BACKEND.

    Raises:
        UserError: it names a backend that does not exist.
    """
    wanted = os.environ.get("LOOKUPFFN_BACKEND", "auto")
    if wanted != "auto" and wanted not in _PREFERENCE:
        raise unknown_name("backend in LOOKUPFFN_BACKEND", wanted, ("auto", *_PREFERENCE))
    return wanted


def select(operation: str, *arguments: Any) -> Callable:
    """The implementation of ``operation`` to run on ``arguments``.

    Raises:
        UserError: LOOKUPFFN_BACKEND names a backend that does not exist, or one that cannot do this.
    """
    wanted = wanted_backend()
    available = _IMPLEMENTATIONS[operation]
    for backend in _PREFERENCE if wanted == "auto" else (wanted,):
        if backend in available:
            function, serves = available[backend]
            if serves(*arguments):
                return function
    raise UserError(f"LOOKUPFFN_BACKEND={wanted} cannot run {operation} on these tensors or this machine; use auto")
