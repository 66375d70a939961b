"""Where documents come from: one file a source, one door."""

from collections.abc import Mapping
from pathlib import Path

from lookupffn.data.corpus.base import SPLITS, Corpus
from lookupffn.data.corpus.docstrings import DocstringCorpus
from lookupffn.data.corpus.hub import SOURCES, HubCorpus
from lookupffn.data.corpus.text import TextCorpus
from lookupffn.errors import unknown_name

CORPORA: dict[str, type[Corpus]] = {
    DocstringCorpus.name: DocstringCorpus,
    TextCorpus.name: TextCorpus,
    **dict.fromkeys(SOURCES, HubCorpus),
}
# what every source takes beside its own options
COMMON_OPTIONS = frozenset({"name", "sequence_length", "mask_rate"})


def open_corpus(data: Mapping, cache_dir: Path, num_processes: int | None = None) -> Corpus:
    """The corpus that ``data["name"]`` names.

    Raises:
        UserError: unknown name or option, an option that cannot be, or something its source needs is missing.
    """
    name = data.get("name")
    if name not in CORPORA:
        raise unknown_name("data", name, CORPORA)
    corpus = CORPORA[name]
    for option in data:
        if option not in corpus.options | COMMON_OPTIONS:
            raise unknown_name(f"option of data {name!r}", option, corpus.options | COMMON_OPTIONS)
    return corpus(data, cache_dir, num_processes)


__all__ = ["CORPORA", "SPLITS", "Corpus", "open_corpus"]
