"""Writes requirements.lock: the version of everything that requirements.txt and requirements-dev.txt bring with them.

Run it in an environment where requirements-dev.txt is installed. What is needed on other platforms and newer Pythons
only must be installed too, or stand in ELSEWHERE. torch itself pins its CUDA libraries, so they are left out.
"""

import importlib.metadata
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PLATFORMS = (("linux", "Linux", "posix"), ("darwin", "Darwin", "posix"), ("win32", "Windows", "nt"))
ELSEWHERE = {"colorama": "0.4.6"}
HEAD = """\
# Made by scripts/lock_requirements.py. A constraints file: pip install -r requirements.txt -c requirements.lock
# Versions of all that requirements.txt and requirements-dev.txt bring, on Python 3.11 to 3.14, whatever the platform.
"""


def environments() -> list[dict[str, str]]:
    """The environments in which a requirement may hold."""
    return [
        {
            "python_version": python, "python_full_version": f"{python}.0", "sys_platform": platform,
            "platform_system": system, "os_name": kind, "platform_machine": machine, "extra": "",
            "implementation_name": "cpython", "platform_python_implementation": "CPython",
        }
        for python, (platform, system, kind), machine in itertools.product(PYTHONS, PLATFORMS, ("x86_64", "arm64"))
    ]  # fmt: skip


def needed(name: str, extras: set[str]) -> Iterator[Requirement]:
    """What an installed package needs somewhere, torch's CUDA libraries left out."""
    for text in importlib.metadata.distribution(name).requires or ():
        requirement = Requirement(text)
        if requirement.name.startswith(("nvidia-", "cuda-", "triton")):
            continue
        marker = requirement.marker
        holds = marker is None or any(
            marker.evaluate({**environment, "extra": extra})
            for environment in environments()
            for extra in {"", *extras}
        )
        if holds:
            yield requirement


def main() -> None:
    """Writes the lock file, or says what is not installed."""
    waiting = []
    for file in ("requirements.txt", "requirements-dev.txt"):
        lines = (line.split("#")[0].strip() for line in (ROOT / file).read_text().splitlines())
        waiting += [Requirement(line) for line in lines if line and not line.startswith("-")]
    versions: dict[str, tuple[str, str]] = {}
    seen = set()
    while waiting:
        requirement = waiting.pop()
        key = canonicalize_name(requirement.name)
        if (key, frozenset(requirement.extras)) in seen:
            continue
        seen.add((key, frozenset(requirement.extras)))
        if key in ELSEWHERE:
            versions[key] = (requirement.name, ELSEWHERE[key])
            continue
        try:
            version = importlib.metadata.version(requirement.name)
            waiting += needed(requirement.name, requirement.extras)
        except importlib.metadata.PackageNotFoundError:
            sys.exit(f"{requirement} is not installed: install requirements-dev.txt, or name it in ELSEWHERE")
        versions[key] = (requirement.name, version.split("+")[0])
    lines = [f"{name}=={version}\n" for _, (name, version) in sorted(versions.items())]
    (ROOT / "requirements.lock").write_text(HEAD + "".join(lines))


if __name__ == "__main__":
    main()
