"""Load the compiled kernels, once a process; where that fails, say why, once, and leave the work to the reference."""

from __future__ import annotations

import threading
import warnings
from functools import cache

import torch

from lookupffn.ops.cpu.build import BuildError, library

_LOCK = threading.Lock()


@cache
def _failure() -> str | None:
    try:
        path = library()
        try:
            torch.ops.load_library(path)
        except OSError as error:
            raise BuildError(f"the compiled kernels do not load: {error.__cause__ or error}") from error
        from lookupffn.ops.cpu import operators

        operators.register()
    except BuildError as error:
        return " ".join(str(error).split())
    return None


def unavailable_reason() -> str | None:
    """Why the kernels cannot be used; None if they can. Compiles them if that was not done yet."""
    with _LOCK:
        return _failure()


@torch.compiler.assume_constant_result
def available() -> bool:
    """Whether the kernels are loaded. The first call may compile; a failure warns, once."""
    return _warn_once()


@cache
def _warn_once() -> bool:
    reason = unavailable_reason()
    if reason is not None:
        warnings.warn(
            f"the fast CPU kernels cannot be used, the slower reference runs instead: {reason}",
            RuntimeWarning,
            stacklevel=3,
        )
    return reason is None
