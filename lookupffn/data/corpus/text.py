"""The user's own files, streamed."""

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path

from lookupffn import storage
from lookupffn.config.data import TextSettings
from lookupffn.data.corpus.base import Corpus, in_validation
from lookupffn.data.corpus.files import COMPRESSIONS, content_digests, find_files, suffix_of
from lookupffn.data.corpus.readers import read_documents, replacements
from lookupffn.errors import UserError

logger = logging.getLogger(__name__)

_NAMED_FILES = 10  # in a report
_EMPTY = hashlib.sha256().hexdigest()


class TextCorpus(Corpus):
    """Local files.

    Settings: ``train_files`` and ``validation_files``, each a path, a glob or a list of them; ``text_field``, the field
    or column of the text; ``validation_fraction``, the fraction of the training documents, chosen by a hash of their
    text, that is held out when no ``validation_files`` are given.
    """

    name = "text"

    def __init__(self, settings: TextSettings, cache_dir: Path, num_processes: int | None = None) -> None:
        """
        Raises:
            UserError: no files named, none found, or their kind is unknown.
        """
        self.field = "text" if settings.text_field in (None, "") else str(settings.text_field)
        self.fraction = settings.validation_fraction
        self._cache_dir = cache_dir
        self._digests: dict[str, list[str]] = {}
        self._replaced: dict[Path, int] = {}  # invalid UTF-8 sequences of the files read to their end
        self.files: dict[str, list[Path]] = {}
        for split in ("train", "validation"):
            patterns = getattr(settings, f"{split}_files")
            if patterns is not None:
                self.files[split] = find_files(patterns, f"data.{split}_files")
        if not self.files:
            raise UserError(
                "data=text needs data.train_files=<path or glob> (and data.validation_files if you have them)"
            )
        # without files of its own the validation split is a fraction of the training documents
        self.held_out = "validation" not in self.files and self.fraction > 0

    def has(self, split: str) -> bool:
        return split in self.files or (split == "validation" and self.held_out)

    def fingerprint(self, split: str) -> str:
        """
        Raises:
            UserError: a file cannot be read, or is in both splits, under whatever names.
        """
        source = split if split in self.files else "train"
        if source not in self._digests:
            self._digests[source] = content_digests(self.files[source], self._cache_dir)
            self._check_overlap()
        share = [split, self.fraction] if self.held_out else None
        return storage.fingerprint(
            corpus=self.name, version=1, files=self._digests[source], field=self.field, share=share
        )

    def _check_overlap(self) -> None:
        if len(self._digests) < 2:
            return
        train, validation = (
            {named.split(":")[1]: path for named, path in zip(self._digests[split], self.files[split], strict=True)}
            for split in ("train", "validation")
        )
        if shared := train.keys() & validation.keys() - {_EMPTY}:
            digest = min(shared, key=lambda digest: train[digest])
            raise UserError(
                f"{train[digest]} in data.train_files and {validation[digest]} in data.validation_files are the same "
                "text, and a model must not be scored on what it was trained on: take it out of one of them"
            )

    def documents(self, split: str) -> Iterator[str]:
        for path in self.files[split if split in self.files else "train"]:
            before = replacements.count
            for document in read_documents(path, self.field):
                if not self.held_out or in_validation(document, self.fraction) == (split == "validation"):
                    yield document
            self._replaced[path] = replacements.count - before

    def characters(self, split: str) -> int | None:
        paths = self.files[split if split in self.files else "train"]
        if any(suffix_of(path).endswith((*COMPRESSIONS, ".parquet")) for path in paths):
            return None  # compressed
        total = sum(path.stat().st_size for path in paths)
        return round(total * (self.fraction if split not in self.files else 1))

    def report(self) -> None:
        """Say once, for all passes over the files, how much invalid UTF-8 was replaced and where."""
        found = [f"{path} ({count})" for path, count in self._replaced.items() if count]
        if found:
            more = f" and {len(found) - _NAMED_FILES} more files" if len(found) > _NAMED_FILES else ""
            logger.warning(
                "%d invalid UTF-8 sequences replaced by U+FFFD in %s%s",
                sum(self._replaced.values()), ", ".join(found[:_NAMED_FILES]), more,
            )  # fmt: skip
        self._replaced.clear()
