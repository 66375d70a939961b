"""Compile the C++ kernels for this machine, once: keyed by everything the result depends on, safe among processes.

Nothing but a C++20 compiler is needed: not ninja, no Python headers. The library talks to torch through its stable ABI.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock

logger = logging.getLogger(__name__)

KERNELS = Path(__file__).parent / "kernels"
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
)
_LINK_FLAGS = ("-shared", "-ltorch_cpu")


class BuildError(RuntimeError):
    """The kernels cannot be had on this machine; the message is one line saying why."""


def cache_folder() -> Path:
    """Where compiled kernels are kept: LOOKUPFFN_CACHE, or ~/.cache/lookupffn."""
    root = os.environ.get("LOOKUPFFN_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "lookupffn") / "kernels"


def find_compiler() -> list[str]:
    """The C++ compiler as a command: CXX (which may carry arguments), else c++, g++ or clang++.

    Raises:
        BuildError: there is none.
    """
    named = os.environ.get("CXX")
    candidates = [shlex.split(named)] if named else [["c++"], ["g++"], ["clang++"]]
    for command in candidates:
        if command and shutil.which(command[0]):
            return command
    raise BuildError(f"the C++ compiler CXX={named} does not exist" if named else "no C++ compiler (g++ or clang++)")


def library() -> Path:
    """The compiled kernels, compiled now if this machine has not done so yet.

    LOOKUPFFN_CXXFLAGS adds compiler flags (a sanitizer, say).

    Returns:
        Path of the shared library.

    Raises:
        BuildError: no compiler, or it failed.
    """
    compiler = find_compiler()
    flags = [*_FLAGS, *_machine_flags(), *shlex.split(os.environ.get("LOOKUPFFN_CXXFLAGS", ""))]
    folder = cache_folder()
    target = folder / f"lookupffn-{_key(compiler, flags)}.so"
    if target.exists():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_suffix(".lock")):
            if not target.exists():  # another process may have built it while this one waited
                _compile(compiler, flags, target)
    except OSError as error:
        raise BuildError(f"cannot write the kernel cache {folder}: {error}") from error
    return target


def _compile(compiler: list[str], flags: list[str], target: Path) -> None:
    # a warning, so that nobody waits in front of a silent terminal
    logger.warning("compiling the CPU kernels for this machine (once, well under a minute)")
    start = time.monotonic()
    torch_root = Path(torch.__file__).parent
    scratch = target.with_suffix(f".{os.getpid()}")
    scratch.mkdir()
    try:
        objects = []
        commands = []
        for source in sorted(KERNELS.glob("*.cpp")):
            objects.append(scratch / f"{source.stem}.o")
            include = ["-isystem", str(torch_root / "include")]
            commands.append([*compiler, *flags, *include, "-c", str(source), "-o", str(objects[-1])])
        with ThreadPoolExecutor(max_workers=min(len(commands), os.cpu_count() or 1)) as pool:
            list(pool.map(_run, commands))
        linked = scratch / "linked.so"
        libraries = torch_root / "lib"
        _run([*compiler, *flags, *map(str, objects), f"-L{libraries}", *_LINK_FLAGS, "-o", str(linked)])
        linked.replace(target)  # atomic: no process ever sees half a library
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    logger.info("compiled the CPU kernels in %.0f s", time.monotonic() - start)


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


def _key(compiler: list[str], flags: list[str]) -> str:
    parts = [torch.__version__, sys.platform, platform.machine(), _cpu_features(), *compiler, _version(tuple(compiler))]
    digest = hashlib.sha256("\n".join([*parts, *flags]).encode())
    for source in sorted(KERNELS.iterdir()):
        if source.suffix in (".h", ".cpp"):
            digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()[:16]


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
