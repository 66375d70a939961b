"""Where documents come from: one file a source, opened by name."""

from collections.abc import Callable, Mapping
from pathlib import Path

from lookupffn.config.data import data_settings
from lookupffn.data.corpus.base import SPLITS, Corpus
from lookupffn.data.corpus.docstrings import KINDS, PackageTextCorpus
from lookupffn.data.corpus.hub import SOURCES, HubCorpus
from lookupffn.data.corpus.text import TextCorpus

CORPORA: dict[str, Callable[..., Corpus]] = {
    **dict.fromkeys(KINDS, PackageTextCorpus),
    TextCorpus.name: TextCorpus,
    **dict.fromkeys(SOURCES, HubCorpus),
}


def open_corpus(data: Mapping, cache_dir: Path, num_processes: int | None = None) -> Corpus:
    """The corpus that ``data["name"]`` names.

    Raises:
        UserError: unknown name or option, an option that cannot be, or something its source needs is missing.
    """
    settings = data_settings(data)
    return CORPORA[settings.name](settings, cache_dir, num_processes)


__all__ = ["CORPORA", "SPLITS", "Corpus", "open_corpus"]
