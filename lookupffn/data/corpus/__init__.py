"""Where documents come from: one file a source, opened by name."""

from collections.abc import Callable
from pathlib import Path

from lookupffn.config.data import DataSettings
from lookupffn.data.corpus.base import SPLITS, Corpus
from lookupffn.data.corpus.docstrings import KINDS, PackageTextCorpus
from lookupffn.data.corpus.hub import SOURCES, HubCorpus
from lookupffn.data.corpus.text import TextCorpus

CORPORA: dict[str, Callable[..., Corpus]] = {
    **dict.fromkeys(KINDS, PackageTextCorpus),
    TextCorpus.name: TextCorpus,
    **dict.fromkeys(SOURCES, HubCorpus),
}


def open_corpus(settings: DataSettings, cache_dir: Path, num_processes: int | None = None) -> Corpus:
    """The corpus that a data section names.

    Raises:
        UserError: something that its source needs is missing.
    """
    return CORPORA[settings.name](settings, cache_dir, num_processes)


__all__ = ["CORPORA", "SPLITS", "Corpus", "open_corpus"]
