"""What a corpus is to the rest of the data room, and the on-disk store that some corpora fill first."""

import gzip
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path

from lookupffn import storage
from lookupffn.data import cache

SPLITS = ("train", "validation")
INDEX = "index.json"  # of a store: at least {"characters": {split: count}}
_HASH_RANGE = 2**64


def in_validation(key: str, fraction: float) -> bool:
    """Whether the thing named ``key`` belongs to the validation split; the same on every machine."""
    digest = hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * _HASH_RANGE


class Corpus(ABC):
    """Documents in two splits that share no text."""

    name: str

    @abstractmethod
    def fingerprint(self, split: str) -> str:
        """Hex digits naming the documents of a split; found without reading them where that is possible."""

    @abstractmethod
    def documents(self, split: str) -> Iterator[str]:
        """The documents of a split, streamed, always in the same order."""

    def has(self, split: str) -> bool:
        """Whether the user named a source for this split."""
        return split in SPLITS

    def characters(self, split: str) -> int | None:
        """About how many characters a split has, where that is known beforehand (for the progress bar)."""
        return None

    def report(self) -> None:
        """Tell the user, once, what had to be changed in the documents read so far."""
        return


class StoredCorpus(Corpus):
    """A corpus that is first gathered into shards in the cache, beside an index of their sizes."""

    kept_after: cache.Kept = ()  # what may interrupt the gathering, which then can go on

    def __init__(self, cache_dir: Path) -> None:
        self._cache_dir = cache_dir

    @property
    @abstractmethod
    def key(self) -> str:
        """The fingerprint of everything that decides the documents."""

    @abstractmethod
    def gather(self, folder: Path) -> None:
        """Write the shards of every split, and the index."""

    def store_of(self, key: str) -> Path:
        """Where a gathered corpus stands in the cache."""
        return self._cache_dir / "corpora" / key

    def _ready(self) -> Path:
        store = self.store_of(self.key)
        cache.ensure_entry(store, self.gather, what=f"the corpus {self.name}", kept_after=self.kept_after)
        return store

    def fingerprint(self, split: str) -> str:
        return storage.fingerprint(corpus=self.key, split=split)

    def documents(self, split: str) -> Iterator[str]:
        yield from read_shards(self._ready(), split)

    def characters(self, split: str) -> int | None:
        return json.loads((self._ready() / INDEX).read_text(encoding="utf-8"))["characters"][split]


def write_shard(path: Path, documents: Iterable[str]) -> int:
    """Write documents, one JSON string a line, gzip-compressed; returns how many."""
    count = 0
    # the empty name and time keep the bytes of a shard a function of its documents alone
    with open(path, "wb") as raw, gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as file:
        for document in documents:
            file.write(json.dumps(document, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
            count += 1
    return count


def read_shards(folder: Path, split: str) -> Iterator[str]:
    """The documents of a split from a store written by ``write_shard`` as <split>-<number>.jsonl.gz."""
    for path in sorted(folder.glob(f"{split}-*.jsonl.gz")):
        with gzip.open(path, "rb") as file:
            for line in file:
                yield json.loads(line)
