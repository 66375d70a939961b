"""Corpora of the Hugging Face hub, streamed to local shards.

The stream is written in shards of whole documents with its position after each, so that a preparation that was
interrupted goes on after the last finished shard, and memory never holds more than one shard.
"""

import errno
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lookupffn import storage
from lookupffn.config.data import HubSettings
from lookupffn.data.corpus.base import INDEX, SPLITS, StoredCorpus, in_validation, write_shard
from lookupffn.errors import UserError

logger = logging.getLogger(__name__)

VERSION = 2
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
_TIMEOUT_S = 5.0  # to reach the hub at all; without a network the answer comes sooner


@dataclass(frozen=True)
class Source:
    """Where a corpus lies on the hub and how its rows become documents."""

    repository: str
    config: str
    has_validation: bool  # a split of its own, else a share of the rows by a hash of their id
    lines: bool  # rows are lines of articles, else a row is a document


SOURCES = {
    "wikitext103": Source("Salesforce/wikitext", "wikitext-103-raw-v1", has_validation=True, lines=True),
    "wikipedia": Source("wikimedia/wikipedia", "20231101.en", has_validation=False, lines=False),
}


def _unreachable(source: Source, error: BaseException) -> UserError:
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    return UserError(
        f"cannot get {source.repository} from the Hugging Face hub ({reason}): check the network, or work offline with "
        "data=docstrings or data=text data.train_files=..."
    )


def reach(source: Source, revision: str | None) -> str | None:
    """The commit that ``revision`` stands for; fails within seconds without a network, where streaming would retry."""
    import huggingface_hub

    return huggingface_hub.HfApi().dataset_info(source.repository, revision=revision, timeout=_TIMEOUT_S).sha


def open_stream(source: Source, split: str, revision: str | None) -> Any:
    """A resumable stream of rows."""
    import datasets

    return datasets.load_dataset(source.repository, source.config, split=split, streaming=True, revision=revision)


def _is_title(line: str) -> bool:
    """Whether a wikitext line is `` = Title = ``, the head of an article (sections have more signs)."""
    text = line.strip()
    return len(text) > 4 and text.startswith("= ") and text.endswith(" =") and not text.startswith("= =")


class HubCorpus(StoredCorpus):
    """A corpus of ``SOURCES``.

    Options (configs/data/wikitext103.yaml, wikipedia.yaml): ``revision`` of the dataset (null: the newest),
    ``shard_characters``, the size of a shard, and ``validation_fraction`` for a corpus without a validation split.
    """

    kept_after = (KeyboardInterrupt, UserError)  # the user stopped it, or the network did

    def __init__(self, settings: HubSettings, cache_dir: Path, num_processes: int | None = None) -> None:
        """
        Raises:
            UserError: an option is not a number that it can be.
        """
        self.name = settings.name
        self.source = SOURCES[self.name]
        self.revision = settings.revision
        self.shard_characters = settings.shard_characters
        # a corpus with a validation split of its own takes no such option
        self.fraction = getattr(settings, "validation_fraction", None)
        super().__init__(cache_dir)

    @property
    def key(self) -> str:
        return storage.fingerprint(
            corpus=self.name,
            version=VERSION,
            source=[self.source.repository, self.source.config, self.revision],
            fraction=self.fraction,
        )

    def gather(self, folder: Path) -> None:
        state = self._resume(folder)
        try:
            state["revision"] = state["revision"] or reach(self.source, self.revision)
            for split in ("train", "validation") if self.source.has_validation else ("train",):
                if split not in state["finished"]:
                    self._stream(folder, split, state)
        except UserError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
                raise  # the cache's to report
            raise _unreachable(self.source, error) from error

    @staticmethod
    def _resume(folder: Path) -> dict:
        """The state after the last finished shard; files written after it are removed."""
        path = folder / INDEX
        state: dict[str, Any] = {
            "shards": 0, "finished": [], "stream": None, "pending": [], "revision": None,
            "characters": dict.fromkeys(SPLITS, 0),
        }  # fmt: skip
        if path.is_file():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
                if found.keys() != state.keys() or type(found["shards"]) is not int:
                    raise ValueError("not what was written")
                state = found
                logger.info("going on after shard %d", state["shards"])
            except (ValueError, AttributeError, RecursionError) as error:
                logger.warning("%s cannot be read (%s); streaming from the start", path, error)
        for shard in folder.glob("*.jsonl.gz"):
            if int(shard.name.split("-")[1].split(".")[0]) >= state["shards"]:
                shard.unlink()
        return state

    def _stream(self, folder: Path, split: str, state: dict) -> None:
        rows = open_stream(self.source, split, state["revision"])
        if state["stream"] is not None:
            rows.load_state_dict(state["stream"])
        kept: dict[str, list[str]] = {name: [] for name in SPLITS}
        article: list[str] = state["pending"]
        size = sum(map(len, article))

        def finish_shard(stream: dict | None, finished: bool) -> None:
            for name, documents in kept.items():
                if documents:
                    write_shard(folder / f"{name}-{state['shards']:05d}.jsonl.gz", documents)
                    state["characters"][name] += sum(map(len, documents))
                    documents.clear()
            state.update(shards=state["shards"] + 1, stream=stream, pending=article)
            if finished:
                state["finished"].append(split)
            storage.write_atomically(folder / INDEX, json.dumps(state))

        with tqdm(desc=f"streaming {self.name} {split}", unit="char", unit_scale=True) as bar:
            bar.update(sum(state["characters"].values()))
            for row in rows:
                text = row["text"]
                bar.update(len(text))
                if self.source.lines and not _is_title(text):
                    article.append(text)
                    size += len(text)
                    continue
                if self.source.lines:
                    document, article = "".join(article).strip(), [text]
                    target = split
                else:
                    document = text.strip()
                    held_out = in_validation(str(row.get("id", text)), self.fraction)
                    target = "validation" if held_out else "train"
                size += len(text)
                if document:
                    kept[target].append(document)
                if size >= self.shard_characters:
                    finish_shard(rows.state_dict(), finished=False)
                    size = 0
        if document := "".join(article).strip():
            kept[split].append(document)
        article = []
        finish_shard(None, finished=True)
