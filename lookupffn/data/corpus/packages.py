"""The packages whose text is the default corpus, at the versions that requirements.lock pins.

A package is taken as it is published: the files that its wheel lists, the same for every platform and Python version,
held to one digest. ``scripts/pin_packages.py`` prints ``PINNED`` anew.
"""

import base64
import csv
import hashlib
import importlib.metadata
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lookupffn.data.parallel import ordered_map

logger = logging.getLogger(__name__)

# package -> its version, and the digest of its sources
PINNED: dict[str, tuple[str, str]] = {
    "accelerate": ("1.15.0", "621ba0531a20a79d2b2c6f026a9aaaf1"),
    "anyio": ("4.16.0", "8a8ec41666e234a1b093b3d0d8f33109"),
    "click": ("8.5.1", "17403d789e41ae5e65f653877766172d"),
    "contourpy": ("1.3.3", "68756e132b0471cbbbc0d99d708d5782"),
    "datasets": ("5.2.0", "8a7306ebb136e46315f5b76f8b562675"),
    "dill": ("0.4.1", "fc7bc7c3b4d93c94857ec00924bccf68"),
    "filelock": ("4.2.11", "2bd85dce7dbcf4331160a839137f31e4"),
    "fonttools": ("4.68.0", "822bd42ba882f7765856ac3f20bbc330"),
    "fsspec": ("2026.9.0", "308d8227b5480bee6364b29b5fd52564"),
    "httpx2": ("2.16.2", "c274a16769bf5bc55bbe5668040336ff"),
    "huggingface_hub": ("2.4.0", "af45474e8b31452c69ffb46e1e2dc4d3"),
    "hydra-core": ("1.3.8", "6baace027d6dcb316a133c687f41ceb9"),
    "Jinja2": ("3.1.6", "373966abb4de98d9321e8609caf8fb62"),
    "markdown-it-py": ("4.3.0", "325f9c68f78b4d0c47390d44546f609e"),
    "matplotlib": ("3.11.2", "9d6968f1429dec42e4af858b21d14577"),
    "mpmath": ("1.3.0", "cac233c2eb896b0b44f5eb1a26767527"),
    "networkx": ("3.6.1", "2d525cb88789fb83f34af55473cfed29"),
    "numpy": ("2.4.6", "9fa142495b3d5ec51595bcf39b294b3a"),
    "omegaconf": ("2.3.1", "0f106f76155fcc4ddf3cd11154ee6d43"),
    "opentelemetry-api": ("1.45.2", "eb14315a3ca823fefcf18a81680cc7b2"),
    "opentelemetry-sdk": ("1.45.2", "3d30b6cadbdf53f4fe43ff6c57ec5caf"),
    "packaging": ("26.3", "d95834f43c9d33ff6ace8d87a3372923"),
    "pandas": ("3.1.1", "72e390964d17554e217f2694d588c8e2"),
    "pillow": ("12.3.0", "11ed21341652019a425eec98b601b2e5"),
    "protobuf": ("7.36.2", "0a856340928e6041786d8fdf138a30f3"),
    "pyarrow": ("26.0.1", "79c80e8734f9cc6434743443f5e47e65"),
    "pydantic": ("2.14.4", "c4bada7d0c6510de8c030c16a5ec57bf"),
    "pydantic_core": ("2.50.5", "c2aaa7ff34e24771f38b5f9cb91aee3d"),
    "Pygments": ("2.21.0", "b4541227088e460a8f776b654a6b1516"),
    "pyparsing": ("3.3.3", "769dd2894c17bcc062b5c4f70455307a"),
    "python-dateutil": ("4.0.0", "143cd1d7693850c4f74271a7fdef9c44"),
    "requests": ("2.34.2", "a1199ff297521adc0594fee53a27ff53"),
    "rich": ("15.0.0", "e8f53118fc6ba060de4b5f21d44940ee"),
    "sympy": ("1.14.0", "08138457ffcc715c2a787738483d872f"),
    "torch": ("2.13.0", "f7841423719c6939624c1d861982a964"),
    "tqdm": ("4.70.1", "fefda4dfb622b246c699d12871846d6e"),
    "transformers": ("5.23.0", "b7863fb12ae462df44ea9583a740179f"),
    "typer": ("0.29.2", "9a7b95ae08c159ba5dadffd68c329ec2"),
    "urllib3": ("2.8.0", "79aceb0db70b83c2739672de717b3f8f"),
    "wandb": ("0.31.0", "e3e076b8e81219030a11e42b91c565b2"),
}

SUFFIXES = (".py", ".pyx", ".pxi")
# Tests hold much code and little English; numpy has distutils up to Python 3.11 only.
_SKIPPED_FOLDERS = frozenset({"test", "tests", "distutils"})
# written when a wheel is built
_SKIPPED_NAMES = frozenset(
    {"version.py", "_version.py", "__config__.py", "_build_config.py", "_version_meson.py", "_generated_version.py"}
)


@dataclass(frozen=True)
class Package:
    """An installed package: its public version and its sources, by name within the installation, sorted."""

    name: str
    version: str
    files: dict[str, Path]

    def digest(self) -> str:
        """Of the names and contents of the sources; line ends do not count."""
        total = hashlib.sha256()
        for name, path in self.files.items():
            try:
                content = hashlib.sha256(read_source(path)).hexdigest()
            except OSError:
                content = "missing"
            total.update(f"{name} {content}\n".encode())
        return total.hexdigest()[:32]

    def altered(self) -> str | None:
        """The first source that is not what the wheel brought, by the installer's own record."""
        for name, recorded in _record(importlib.metadata.distribution(self.name)):
            if name not in self.files or not recorded.startswith("sha256="):
                continue
            try:
                digest = hashlib.sha256(self.files[name].read_bytes()).digest()
            except OSError:
                return name
            if base64.urlsafe_b64encode(digest).decode().rstrip("=") != recorded.removeprefix("sha256="):
                return name
        return None


def _record(distribution: importlib.metadata.Distribution) -> list[tuple[str, str]]:
    """Every file that a wheel brought, with its digest; ``files`` leaves out what is gone from Python 3.12 on."""
    rows = csv.reader((distribution.read_text("RECORD") or "").splitlines())
    return [(row[0], row[1]) for row in rows if len(row) == 3]


def is_source(name: str) -> bool:
    """Whether a file, named by its path within the installation, belongs to the corpus."""
    *folders, base = name.split("/")
    if len(folders) == 1 and base == "__init__.py":
        return False  # wheels for Windows have their search for DLLs patched in
    return (
        base.endswith(SUFFIXES)
        and not base.startswith("test_")
        and base not in _SKIPPED_NAMES
        and ".." not in folders
        and _SKIPPED_FOLDERS.isdisjoint(folders)
    )


def read_source(path: Path) -> bytes:
    """A file with line feeds for line ends, whichever a checkout or a wheel has made of them."""
    return path.read_bytes().replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def installed(name: str) -> Package | None:
    """An installed package; None where there is none, or no record of its files."""
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    names = sorted(name for name, _ in _record(distribution) if is_source(name))
    version = distribution.version.split("+")[0]  # torch's builds for CPU and CUDA have the same sources
    return Package(name, version, {entry: Path(str(distribution.locate_file(entry))) for entry in names})


def _digest(package: Package) -> str:
    return package.digest()


def digests(packages: Iterable[Package], processes: int) -> Iterator[str]:
    """The digest of each package, in order."""
    return ordered_map(_digest, packages, processes=processes)


def other_versions() -> list[str]:
    """Which packages of ``PINNED`` are missing or of another version, in words."""
    wrong = []
    for name, (version, _) in PINNED.items():
        package = installed(name)
        if package is None:
            wrong.append(f"{name} is not installed ({version} is wanted)")
        elif package.version != version:
            wrong.append(f"{name} is {package.version}, not {version}")
    return wrong


def check(processes: int) -> tuple[list[Package], list[list[str]], list[str]]:
    """What is installed of ``PINNED``.

    Returns:
        The packages found; (name, version, digest) of each; what is wrong with any, in words.
    """
    found = [package for name in PINNED if (package := installed(name)) is not None]
    identity = [[p.name, p.version, d] for p, d in zip(found, digests(found, processes), strict=True)]
    wrong = other_versions()
    for package, (name, version, digest) in zip(found, identity, strict=True):
        if version == PINNED[name][0] and digest != PINNED[name][1]:
            wrong.append(f"{package.altered() or f'the list of files of {name}'} is not what {name} {version} brings")
    return found, identity, wrong
