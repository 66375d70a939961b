"""Load compiled C++, once a process; where that fails, say why, once, and leave the work to the reference."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path

import torch

from lookupffn.ops.build import BuildError, Sources, compiled


class NativeLibrary:
    """A set of C++ sources that is compiled and loaded at first use.

    Its operators are registered with torch as it is loaded (STABLE_TORCH_LIBRARY_IMPL); schemas are declared in Python
    (``torch.library.define``). Functions meant for other libraries are marked LFFN_EXPORT.
    """

    def __init__(self, sources: Sources, links: tuple[NativeLibrary, ...] = ()) -> None:
        """``links``: libraries whose exported functions it calls; they are loaded first."""
        self.sources = sources
        self.links = links
        self._lock = threading.Lock()
        self._path: Path | None = None
        self._failure: str | None = None
        self._warned = False

    def path(self) -> Path:
        """The loaded library's file.

        Raises:
            BuildError: it cannot be compiled or loaded.
        """
        with self._lock:
            if self._failure is not None:
                raise BuildError(self._failure)
            if self._path is None:
                try:
                    self._path = self._load()
                except BuildError as error:
                    self._failure = " ".join(str(error).split())
                    raise
            return self._path

    def _load(self) -> Path:
        links = [library.path() for library in self.links]
        path = compiled(self.sources, links)
        try:
            torch.ops.load_library(path)
        except (OSError, RuntimeError):  # a damaged file is made once more
            path = compiled(self.sources, links, again=True)
            try:
                torch.ops.load_library(path)
            except (OSError, RuntimeError) as error:
                raise BuildError(f"the compiled kernels do not load: {error.__cause__ or error}") from error
        return path

    def unavailable_reason(self) -> str | None:
        """Why it cannot be used; None if it can. Compiles and loads it if that was not done yet."""
        try:
            self.path()
        except BuildError as error:
            return " ".join(str(error).split())
        return None

    def available(self) -> bool:
        """Whether it can be used. The first call may compile; a failure warns, once."""
        reason = self.unavailable_reason()
        if reason is not None and not self._warned:
            self._warned = True
            warnings.warn(
                f"the fast CPU kernels cannot be used, the slower reference runs instead: {reason}",
                RuntimeWarning,
                stacklevel=2,
            )
        return reason is None


CSRC = Path(__file__).parent / "csrc"
KERNELS = NativeLibrary(Sources("lookupffn", CSRC))


@torch.compiler.assume_constant_result
def kernels_available() -> bool:
    """Whether the kernels of this package's operations are loaded."""
    return KERNELS.available()
