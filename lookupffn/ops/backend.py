"""The one place that chooses which implementation of an operation runs.

An operation registers its implementations by backend name, each with a function that says why it declines arguments;
``select`` picks the fastest that does not. The environment variable LOOKUPFFN_BACKEND forces one: ``auto`` (the
default), ``reference``, or ``cpu`` (the C++ kernels, compiled at first use); ``forced_backend`` does so for a block.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lookupffn.errors import UserError, unknown_name

logger = logging.getLogger(__name__)

# An answer of None: it takes the arguments. An empty one: it does not, and nobody need hear of it.
Declines = Callable[..., str | None]

_PREFERENCE = ("cpu", "reference")  # fastest first
COMPOSITE = "composite"  # no backend: made of other operations, each of which chooses for itself
_IMPLEMENTATIONS: dict[str, dict[str, tuple[Callable, Declines]]] = {}
_LOGGED: set[tuple[str, str, str]] = set()
_forced: str | None = None


def _never(*_: Any) -> None:
    return None


def register(operation: str, backend: str, function: Callable, declines: Declines = _never) -> None:
    """Make a function the implementation of ``operation`` on ``backend``.

    Args:
        operation: its name.
        backend: one of the names above, or COMPOSITE for what runs where no backend takes the arguments.
        function: the implementation.
        declines: given the operation's arguments, why the implementation does not take them; None if it does.
    """
    _IMPLEMENTATIONS.setdefault(operation, {})[backend] = (function, declines)


@contextmanager
def forced_backend(name: str) -> Iterator[None]:
    """Inside the block every operation of this process runs on one backend, whatever LOOKUPFFN_BACKEND says.

    Args:
        name: "auto", "reference" or "cpu".
    """
    global _forced
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def wanted_backend() -> str:
    """What ``forced_backend`` asks for, or else LOOKUPFFN_BACKEND.

    Raises:
        UserError: it names a backend that does not exist.
    """
    wanted = os.environ.get("LOOKUPFFN_BACKEND", "auto") if _forced is None else _forced
    if wanted != "auto" and wanted not in _PREFERENCE:
        raise unknown_name("backend in LOOKUPFFN_BACKEND", wanted, ("auto", *_PREFERENCE))
    return wanted


def select(operation: str, *arguments: Any) -> Callable:
    """The implementation of ``operation`` to run on ``arguments``; why a faster one declines is logged once.

    Raises:
        UserError: LOOKUPFFN_BACKEND names a backend that does not exist, or one that cannot do this.
    """
    wanted = wanted_backend()
    available = _IMPLEMENTATIONS[operation]
    reason = None
    for backend in _PREFERENCE if wanted == "auto" else (wanted,):
        if backend in available:
            function, declines = available[backend]
            reason = declines(*arguments)
            if reason is None:
                return function
            if wanted == "auto" and reason:
                _log_once(operation, backend, reason)
    if COMPOSITE in available:
        return available[COMPOSITE][0]
    because = f" ({reason})" if reason else ""
    raise UserError(f"LOOKUPFFN_BACKEND={wanted} cannot run {operation} here{because}; use auto")


def _log_once(operation: str, backend: str, reason: str) -> None:
    if torch.compiler.is_compiling() or (operation, backend, reason) in _LOGGED:
        return
    _LOGGED.add((operation, backend, reason))
    logger.warning("%s runs without the %s kernels: %s", operation, backend, reason)
