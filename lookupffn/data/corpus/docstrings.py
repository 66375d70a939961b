"""The embedded corpora: the English in the docstrings, and in the comments, of the packages that a run imports.

Tens of megabytes of technical English that need no download, and the same text on every machine: packages.py names the
packages, python_text.py finds the texts and the prose in them. A document is the texts of one file. A paragraph is kept
where it is met first, in the sorted order of files, and nowhere else, and a file belongs to one split: no text is in
both.
"""

import json
import logging
import os
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path

from tqdm import tqdm

from lookupffn import storage
from lookupffn.config.data import PackageTextSettings
from lookupffn.data import cache
from lookupffn.data.corpus import packages, python_text
from lookupffn.data.corpus.base import INDEX, SPLITS, StoredCorpus, in_validation, write_shard
from lookupffn.data.corpus.python_text import MIN_CHARACTERS, normalised, paragraphs
from lookupffn.data.parallel import ordered_map, process_count
from lookupffn.errors import UserError

logger = logging.getLogger(__name__)

VERSION = 3
KINDS = {"docstrings": python_text.docstrings, "comments": python_text.comments}
_FILES_A_TASK = 32
_NAMED_PROBLEMS = 3


def python_files(root: Path) -> list[str]:
    """Paths of the source files under ``root``, relative to it, sorted; tests left out."""
    found = [
        os.path.relpath(os.path.join(folder, name), root).replace(os.sep, "/")
        for folder, _, files in os.walk(root)
        for name in files
    ]
    return sorted(filter(packages.is_source, found))


def file_paragraphs(path: str, kind: str) -> list[list[str]] | None:
    """The prose of each docstring or comment of a file, as paragraphs; None when the file cannot be read."""
    try:
        source = packages.read_source(Path(path)).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return None
    return [found for text in dict.fromkeys(KINDS[kind](source)) if (found := paragraphs(text))]


def _task(paths: Sequence[str], kind: str) -> list[list[list[str]] | None]:
    return [file_paragraphs(path, kind) for path in paths]


class PackageTextCorpus(StoredCorpus):
    """Docstrings or comments of the packages of ``PINNED``, or of the folders ``roots``.

    With every package as pinned the corpus is the published one, whatever else is installed, and once it is in the
    cache it stays what it is. Otherwise, and with ``roots``, its name ends in ``-custom`` and its fingerprint says what
    was read.

    Settings: ``roots``, folders of Python packages to read instead, and ``validation_fraction``, the fraction of files
    held out.
    """

    def __init__(self, settings: PackageTextSettings, cache_dir: Path, num_processes: int | None = None) -> None:
        """
        Raises:
            UserError: a folder of ``roots`` does not exist.
        """
        self.kind = self.name = settings.name
        self.validation_fraction = settings.validation_fraction
        self.processes = process_count(num_processes)
        super().__init__(cache_dir)
        given = settings.roots
        named = [given] if isinstance(given, str) else given
        self.roots = None if named is None else [Path(root).expanduser() for root in named]
        for root in self.roots or ():
            if not root.is_dir():
                raise UserError(
                    f"data.roots: no folder {root}; name folders that hold Python packages, or leave it null"
                )
        self._files: list[tuple[str, Path]] = []

    @cached_property
    def key(self) -> str:
        """The fingerprint of the corpus; finding it decides its name and its files."""
        if self.roots is not None:
            self.name = f"{self.kind}-custom"
            self._files = [(name, root / name) for root in self.roots for name in python_files(root)]
            return self._key_of([[name, storage.file_digest(path)] for name, path in self._files])
        standard = self._key_of([[name, *pin] for name, pin in packages.PINNED.items()])
        if cache.stands(self.store_of(standard)):
            if wrong := packages.other_versions():
                logger.info("%s: read from the cache, whatever is installed now (%s)", self.name, _some(wrong))
            return standard
        found, identity, wrong = packages.check(self.processes)
        self._files = [entry for package in found for entry in package.files.items()]
        if not wrong:
            return standard
        self.name = f"{self.kind}-custom"
        logger.warning(
            "the corpus is %s, not %s: %s; install the pinned packages (pip install -r requirements.txt "
            "-c requirements.lock) for results that can be compared with others'",
            self.name, self.kind, _some(wrong),
        )  # fmt: skip
        return self._key_of(identity)

    def _key_of(self, source: list) -> str:
        return storage.fingerprint(corpus=self.kind, version=VERSION, fraction=self.validation_fraction, source=source)

    def gather(self, folder: Path) -> None:
        files = self._files
        tasks = [[str(path) for _, path in files[i : i + _FILES_A_TASK]] for i in range(0, len(files), _FILES_A_TASK)]
        kept: dict[str, list[str]] = {split: [] for split in SPLITS}
        deduplicator = _Deduplicator()
        unreadable = 0
        names = iter(name for name, _ in files)
        with tqdm(total=len(files), desc=f"reading {self.kind}", unit="file", smoothing=0.05) as bar:
            for results in ordered_map(partial(_task, kind=self.kind), tasks, processes=self.processes):
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
            "%s, %d files: %.1f million characters in %d documents to train on, %.1f million in %d to validate"
            "; %d files could not be read",
            self.name, len(files), characters["train"] / 1e6, len(kept["train"]), characters["validation"] / 1e6,
            len(kept["validation"]), unreadable,
        )  # fmt: skip
        for split, documents in kept.items():
            write_shard(folder / f"{split}-00000.jsonl.gz", documents)
        (folder / INDEX).write_text(json.dumps({"characters": characters}), encoding="utf-8")


def _some(problems: list[str]) -> str:
    more = f" and {len(problems) - _NAMED_PROBLEMS} more" if len(problems) > _NAMED_PROBLEMS else ""
    return "; ".join(problems[:_NAMED_PROBLEMS]) + more


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
