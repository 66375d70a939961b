"""The embedded corpus: the English of the docstrings in the user's own Python environment.

The standard library and the installed packages carry tens of megabytes of technical English that need no download.
Docstrings are found with ``ast`` in worker processes; prose.py keeps their prose. A document is the docstrings of one
file. A paragraph is kept where it is met first, in the sorted order of files, and nowhere else, and a file belongs
to one split: no text is in both.
"""

import ast
import gc
import importlib.metadata
import json
import logging
import os
import platform
import sys
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from lookupffn import storage
from lookupffn.config.data import DocstringsSettings
from lookupffn.data.corpus.base import INDEX, SPLITS, StoredCorpus, in_validation, write_shard
from lookupffn.data.corpus.prose import MIN_CHARACTERS, normalised, paragraphs
from lookupffn.data.parallel import ordered_map, process_count
from lookupffn.errors import UserError

logger = logging.getLogger(__name__)

VERSION = 2
# Tests hold few docstrings and much code; idlelib and lib2to3 come and go with the way Python was built.
_SKIPPED_FOLDERS = {"__pycache__", "test", "tests", "site-packages", "dist-packages", "idlelib", "lib2to3"}
_OWN_PACKAGE = Path(__file__).resolve().parents[2]
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_STATEMENT_LISTS = ("cases", "finalbody", "orelse", "handlers", "body")  # last in the source first
_FILES_A_TASK = 32


def environment_roots() -> list[Path]:
    """The standard library, then every installed-packages folder on the import path."""
    paths = sysconfig.get_paths()
    named = [paths["stdlib"], paths["purelib"], paths["platlib"]]
    named += [path for path in sys.path if os.path.basename(path) in ("site-packages", "dist-packages")]
    roots: dict[Path, None] = {}
    for path in named:
        resolved = Path(path).resolve()
        if resolved.is_dir():
            roots.setdefault(resolved)
    return list(roots)


def python_files(root: Path) -> list[str]:
    """Paths of the source files under ``root``, relative to it, sorted; tests and the project itself left out."""
    found: list[str] = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [
            name
            for name in subfolders
            if name not in _SKIPPED_FOLDERS
            and not (name == _OWN_PACKAGE.name and Path(folder, name).resolve() == _OWN_PACKAGE)
        ]
        relative = os.path.relpath(folder, root)
        for name in files:
            if name.endswith(".py") and not name.startswith("test_"):
                found.append(os.path.normpath(os.path.join(relative, name)).replace(os.sep, "/"))
    return sorted(found)


def file_paragraphs(path: str) -> list[list[str]] | None:
    """The prose of each docstring of a file, as paragraphs; None when the file cannot be read or parsed."""
    try:
        source = Path(path).read_bytes()
        if b'"""' not in source and b"'''" not in source:
            return []  # single-quoted docstrings are rare and short: not worth a parse of every file
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escapes
            tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return [found for text in dict.fromkeys(_docstrings(tree)) if (found := paragraphs(text))]


def _docstrings(tree: ast.Module) -> Iterator[str]:
    """Docstrings in the order of the source; visits statements alone, which is eight times faster than ast.walk."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, _DOCUMENTED) and (text := ast.get_docstring(node, clean=False)):
            yield text
        for field in _STATEMENT_LISTS:
            waiting.extend(reversed(getattr(node, field, ())))


def _task(paths: Sequence[str]) -> list[list[list[str]] | None]:
    collecting = gc.isenabled()
    gc.disable()  # syntax trees are many objects and no cycles: collecting them doubles the time to parse
    try:
        return [file_paragraphs(path) for path in paths]
    finally:
        if collecting:
            gc.enable()


class DocstringCorpus(StoredCorpus):
    """Docstrings of ``roots`` (default: this environment).

    Options (configs/data/docstrings.yaml): ``roots``, a list of folders to read in place of the environment, and
    ``validation_fraction``, the share of files held out.
    """

    name = "docstrings"

    def __init__(self, settings: DocstringsSettings, cache_dir: Path, num_processes: int | None = None) -> None:
        """
        Raises:
            UserError: a folder of ``roots`` does not exist.
        """
        given = settings.roots
        named = [given] if isinstance(given, str) else given
        self.roots = environment_roots() if named is None else [Path(root).expanduser() for root in named]
        for root in self.roots:
            if not root.is_dir():
                raise UserError(
                    f"data.roots: no folder {root}; name folders that hold Python packages, or leave it null"
                )
        self.validation_fraction = settings.validation_fraction
        self.num_processes = num_processes
        source = self._environment() if given is None else self._listing()
        super().__init__(cache_dir, version=VERSION, fraction=self.validation_fraction, source=source)

    @staticmethod
    def _environment() -> list[str]:
        """What is installed; reading thousands of files to learn whether they changed would cost more than the run."""
        installed = {f"{item.name}=={item.version}" for item in importlib.metadata.distributions() if item.name}
        return [f"python=={platform.python_version()}", *sorted(installed)]

    def _listing(self) -> list[list[str]]:
        """Content digests: folders named by hand carry no version."""
        return [[name, storage.file_digest(root / name)] for root in self.roots for name in python_files(root)]

    def gather(self, folder: Path) -> None:
        files = [(root / name, name) for root in self.roots for name in python_files(root)]
        tasks = [[str(path) for path, _ in files[i : i + _FILES_A_TASK]] for i in range(0, len(files), _FILES_A_TASK)]
        kept: dict[str, list[str]] = {split: [] for split in SPLITS}
        deduplicator = _Deduplicator()
        unreadable = 0
        names = iter(name for _, name in files)
        with tqdm(total=len(files), desc="reading docstrings", unit="file", smoothing=0.05) as bar:
            for results in ordered_map(_task, tasks, processes=process_count(self.num_processes)):
                for found, name in zip(results, names, strict=False):
                    if found is None:
                        unreadable += 1
                        continue
                    split = "validation" if in_validation(name, self.validation_fraction) else "train"
                    document = deduplicator.document(found, split)
                    if document:
                        kept[split].append(document)
                bar.update(len(results))
        characters = {split: sum(map(len, documents)) for split, documents in kept.items()}
        logger.info(
            "docstrings, %d files: %.1f million characters in %d documents to train on, %.1f million in %d to validate"
            "; %d files could not be read or parsed",
            len(files), characters["train"] / 1e6, len(kept["train"]), characters["validation"] / 1e6,
            len(kept["validation"]), unreadable,
        )  # fmt: skip
        for split, documents in kept.items():
            write_shard(folder / f"{split}-00000.jsonl.gz", documents)
        (folder / INDEX).write_text(json.dumps({"characters": characters}), encoding="utf-8")


class _Deduplicator:
    """Remembers docstrings and paragraphs everywhere, and which split a line of text was met in first."""

    def __init__(self) -> None:
        self._docstrings: set[bytes] = set()
        self._paragraphs: set[bytes] = set()
        self._split_of_line: dict[bytes, str] = {}

    @staticmethod
    def _fresh(text: str, seen: set[bytes]) -> bool:
        key = normalised(text)
        known = key in seen
        seen.add(key)
        return not known

    def _lines_of(self, paragraph: str, split: str) -> str:
        """The paragraph without the longer lines that the other split has (parameters documented alike)."""
        kept = [
            line
            for line in paragraph.split("\n")
            if len(line) < MIN_CHARACTERS or self._split_of_line.setdefault(normalised(line), split) == split
        ]
        return "\n".join(kept)

    def document(self, docstrings: list[list[str]], split: str) -> str:
        """A file's docstrings joined, without what stood in a file before; empty when nothing is left."""
        document: list[str] = []
        for parts in docstrings:
            if not self._fresh("\n".join(parts), self._docstrings):
                continue
            fresh = [part for part in parts if self._fresh(part, self._paragraphs)]
            kept = [text for part in fresh if len(text := self._lines_of(part, split)) >= MIN_CHARACTERS]
            if kept:
                document.append("\n".join(kept))
        return "\n\n".join(document)
