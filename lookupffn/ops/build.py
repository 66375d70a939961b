"""Compile C++ sources for this machine, once: keyed by all that the result depends on, safe among processes.

Nothing but a C++20 compiler is needed: no ninja, no Python headers. The libraries use the stable ABI of torch.
"""

from __future__ import annotations

import atexit
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock

from lookupffn.ops.limits import COMPILER_DEFINITIONS
from lookupffn.ops.ownership import others_may_change
from lookupffn.storage import cache_root

logger = logging.getLogger(__name__)

_TIMEOUT_S = 600
_FLAGS = (
    "-std=c++20",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    # the oldest torch whose stable ABI has all that the kernels use: 2.11
    "-DTORCH_TARGET_VERSION=0x020b000000000000",
    *COMPILER_DEFINITIONS,
)
_LINK_FLAGS = ("-shared", "-ltorch_cpu")


class BuildError(RuntimeError):
    """There is no library for this machine; the message is one line that says why."""


@dataclass(frozen=True)
class Sources:
    """What a shared library is made of.

    Attributes:
        name: of the library's file.
        folder: every .cpp in it is compiled; its headers count for the key.
        includes: further folders of headers, which count for the key too.
    """

    name: str
    folder: Path
    includes: tuple[Path, ...] = ()

    def files(self) -> list[Path]:
        """Sources and headers, in a fixed order."""
        folders = (self.folder, *self.includes)
        return [file for folder in folders for file in sorted(folder.iterdir()) if file.suffix in (".h", ".cpp")]


def kernel_folder() -> Path:
    """Where compiled libraries are kept.

    Raises:
        BuildError: the user has no home folder.
    """
    try:
        return cache_root() / "kernels"
    except RuntimeError as error:
        raise BuildError(f"no folder for compiled kernels ({error}): set LOOKUPFFN_CACHE") from error


def find_compiler() -> list[str]:
    """The C++ compiler as a command: CXX (which may carry arguments), else c++, g++ or clang++.

    Raises:
        BuildError: there is none.
    """
    named = os.environ.get("CXX")
    candidates = [_words("CXX")] if named else [["c++"], ["g++"], ["clang++"]]
    for command in candidates:
        if command and shutil.which(command[0]):
            return command
    raise BuildError(f"the C++ compiler CXX={named} does not exist" if named else "no C++ compiler (g++ or clang++)")


def _words(variable: str) -> list[str]:
    """The words of an environment variable, quoted as in a shell."""
    value = os.environ.get(variable, "")
    try:
        return shlex.split(value)
    except ValueError as error:
        raise BuildError(f"{variable}={value} cannot be read as a command line: {error}") from error


def compiled(sources: Sources, links: Sequence[Path] = (), *, again: bool = False) -> Path:
    """A shared library of ``sources``, compiled now if this machine has not done so yet.

    LOOKUPFFN_CXXFLAGS adds compiler flags (a sanitizer, say). A library is taken from the cache only where nobody but
    this user (or root) could have put it there; else it is compiled in a private folder that goes with the process.

    Args:
        sources: what to compile.
        links: libraries of this function that it calls into.
        again: compile even if it stands, for a library that does not load.

    Raises:
        BuildError: no compiler, no sources, or a failure.
    """
    content = _contents(sources)
    compiler = find_compiler()
    flags = [*_FLAGS, *_machine_flags(), *_words("LOOKUPFFN_CXXFLAGS")]
    name = f"{sources.name}-{_key(content, links, compiler, flags)}.so"
    folder = kernel_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        target = folder.resolve() / name
        problem = others_may_change(target if target.exists() else target.parent)
        if problem is not None:
            folder = _private_folder()
            logger.warning("the kernel cache %s is not used: %s; compiling in %s", target.parent, problem, folder)
            target = folder / name
            problem = others_may_change(folder)
            if problem is not None:
                raise BuildError(f"no safe folder for compiled kernels: {problem}")
        with FileLock(target.with_suffix(".lock")):
            if again or not target.exists():  # another process may have built it while this one waited
                _compile(sources, links, compiler, flags, target)
    except (OSError, NotImplementedError) as error:  # the latter: no file locks on this file system
        raise BuildError(f"cannot write the kernel cache {folder}: {error}") from error
    return target


@cache
def _private_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="lookupffn-")).resolve()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _compile(sources: Sources, links: Sequence[Path], compiler: list[str], flags: list[str], target: Path) -> None:
    # a warning, so that nobody waits in front of a silent terminal
    logger.warning("compiling the CPU kernels (%s) for this machine: once, well under a minute", sources.name)
    start = time.monotonic()
    torch_root = Path(torch.__file__).parent
    include = ["-isystem", str(torch_root / "include"), *(f"-I{folder}" for folder in sources.includes)]
    scratch = target.with_suffix(f".{os.getpid()}")
    scratch.mkdir(mode=0o700)
    try:
        cpp = sorted(sources.folder.glob("*.cpp"))
        objects = [scratch / f"{file.stem}.o" for file in cpp]
        commands = [
            [*compiler, *flags, *include, "-c", str(file), "-o", str(made)]
            for file, made in zip(cpp, objects, strict=True)
        ]
        with ThreadPoolExecutor(max_workers=min(len(commands), os.cpu_count() or 1)) as pool:
            list(pool.map(_run, commands))
        linked = scratch / "linked.so"
        inputs = [*map(str, objects), *map(str, links)]
        _run([*compiler, *flags, *inputs, f"-L{torch_root / 'lib'}", *_LINK_FLAGS, "-o", str(linked)])
        linked.chmod(0o700)
        linked.replace(target)  # atomic: no process ever sees half a library
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    logger.info("compiled %s in %.0f s", sources.name, time.monotonic() - start)


def _run(command: list[str]) -> None:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]} did not run: {error}") from error
    if result.returncode:
        lines = (result.stderr or result.stdout).strip().splitlines()
        first = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "no message")
        raise BuildError(f"{command[0]} failed: {first.strip()}")


@cache
def _machine_flags() -> tuple[str, ...]:
    return ("-mcpu=native",) if platform.machine().lower() in ("arm64", "aarch64") else ("-march=native",)


def _key(content: bytes, links: Sequence[Path], compiler: list[str], flags: list[str]) -> str:
    parts = [torch.__version__, sys.platform, platform.machine(), _cpu_features(), *compiler, _version(tuple(compiler))]
    text = "\n".join([*parts, *flags, *map(str, links)])
    return hashlib.sha256(text.encode() + content).hexdigest()[:16]


def _contents(sources: Sources) -> bytes:
    """Names and contents of all files."""
    try:
        files = sources.files()
        if not any(file.suffix == ".cpp" for file in files):
            raise BuildError(f"no C++ sources in {sources.folder}")
        return b"".join(file.name.encode() + file.read_bytes() for file in files)
    except OSError as error:
        raise BuildError(f"cannot read the C++ sources in {sources.folder}: {error}") from error


@cache
def _version(compiler: tuple[str, ...]) -> str:
    try:
        result = subprocess.run([*compiler, "--version"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{compiler[0]} did not run: {error}") from error
    return result.stdout


@cache
def _cpu_features() -> str:
    """What ``-march=native`` depends on: a cache on a shared disk must not serve another kind of CPU."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    first = text.split("\n\n", 1)[0]
    return "\n".join(line for line in first.splitlines() if line.startswith(wanted))
