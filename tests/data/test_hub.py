import errno
import time

import datasets
import pytest

from lookupffn.data.corpus import hub
from lookupffn.data.corpus.base import in_validation
from lookupffn.errors import UserError
from tests.data.reading import open_corpus

from .conftest import sentences

ARTICLES = 60


@pytest.fixture
def local_hub(tmp_path, monkeypatch):
    """Parquet files in place of the hub; returns the list of opened (repository, config, split)."""
    opened = []
    text = sentences(ARTICLES)
    rows = {"wikimedia/wikipedia": {"id": [str(i) for i in range(ARTICLES)], "text": text}}
    wiki = [
        line
        for i in range(ARTICLES)
        for line in (f" = Title {i} = \n", text[i] + "\n", " = = Part = = \n", f"End {i}.\n")
    ]
    rows["Salesforce/wikitext"] = {"text": wiki}
    for name, columns in rows.items():
        datasets.Dataset.from_dict(columns).to_parquet(tmp_path / f"{name.split('/')[1]}.parquet", batch_size=7)

    def load_dataset(repository, config, *, split, streaming, revision):
        assert streaming and revision == "commit"
        opened.append((repository, config, split))
        return datasets.IterableDataset.from_parquet(str(tmp_path / f"{repository.split('/')[1]}.parquet"))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "reach", lambda source, revision: "commit")
    return opened


def fail_after(monkeypatch, rows, error):
    """Let the next stream break off after ``rows`` rows."""
    original = datasets.IterableDataset.__iter__
    left = [rows]

    def broken(self):
        for row in original(self):
            if left[0] == 0:
                raise error
            left[0] -= 1
            yield row

    monkeypatch.setattr(datasets.IterableDataset, "__iter__", broken)


def test_wikipedia_splits_by_id(local_hub, tmp_path):
    data = {"name": "wikipedia", "validation_fraction": 0.2, "shard_characters": 1500}
    corpus = open_corpus(data, tmp_path / "cache")
    train, validation = (list(corpus.documents(split)) for split in ("train", "validation"))
    expected = sentences(ARTICLES)
    assert validation == [text for i, text in enumerate(expected) if in_validation(str(i), 0.2)]
    assert train == [text for text in expected if text not in validation]
    assert local_hub == [("wikimedia/wikipedia", "20231101.en", "train")]
    assert corpus.characters("train") == sum(map(len, train))


def test_wikitext_rows_become_articles(local_hub, tmp_path):
    corpus = open_corpus({"name": "wikitext103", "shard_characters": 1500}, tmp_path / "cache")
    train = list(corpus.documents("train"))
    assert len(train) == ARTICLES
    assert train[3].startswith("= Title 3 =") and train[3].endswith("End 3.")
    assert list(corpus.documents("validation")) == train  # the fake hub has one file for both
    assert [split for *_, split in local_hub] == ["train", "validation"]


@pytest.mark.parametrize("name", ["wikipedia", "wikitext103"])
@pytest.mark.parametrize("error", [ConnectionError("connection lost"), KeyboardInterrupt()], ids=["network", "ctrl-c"])
def test_an_interrupted_preparation_goes_on(local_hub, tmp_path, monkeypatch, name, error):
    data = {"name": name, "shard_characters": 1500}
    whole = list(open_corpus(data, tmp_path / "other").documents("train"))
    with monkeypatch.context() as patch:
        fail_after(patch, 33, error)
        with pytest.raises((UserError, KeyboardInterrupt)):
            list(open_corpus(data, tmp_path / "cache").documents("train"))
    (partial,) = (tmp_path / "cache" / "corpora").glob("*.partial")
    before = {path.name: path.stat().st_mtime_ns for path in partial.glob("train-*")}
    assert before
    streamed = []
    original = datasets.IterableDataset.__iter__

    def counting(self):
        for row in original(self):
            streamed.append(row)
            yield row

    monkeypatch.setattr(datasets.IterableDataset, "__iter__", counting)
    corpus = open_corpus(data, tmp_path / "cache")
    assert list(corpus.documents("train")) == whole
    (store,) = (path for path in (tmp_path / "cache" / "corpora").iterdir() if path.is_dir())
    for shard, changed in before.items():  # the finished shards were not written again
        assert (store / shard).stat().st_mtime_ns == changed
    rows = ARTICLES * (1 if name == "wikipedia" else 8)
    assert len(streamed) < rows  # nor streamed again


@pytest.mark.parametrize("state", ["{", "[1]", '{"shards": 3}'])
def test_a_damaged_state_starts_from_nothing(tmp_path, caplog, state):
    (tmp_path / "index.json").write_text(state)
    (tmp_path / "train-00000.jsonl.gz").write_bytes(b"from before")
    assert hub.HubCorpus._resume(tmp_path)["shards"] == 0
    assert "streaming from the start" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["index.json"]


def test_full_disk_takes_back_what_this_run_wrote(local_hub, tmp_path, monkeypatch):
    data = {"name": "wikipedia", "shard_characters": 1500}
    original, written = hub.write_shard, []

    def full(path, documents):
        if len(written) == 2:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        return original(path, documents)

    monkeypatch.setattr(hub, "write_shard", full)
    with pytest.raises(UserError, match="No space left on device; the cache is left as it was"):
        list(open_corpus(data, tmp_path / "cache").documents("train"))
    assert len(written) == 2
    assert [path for path in (tmp_path / "cache" / "corpora").iterdir() if path.is_dir()] == []


@pytest.mark.parametrize("name", ["wikipedia", "wikitext103"])
def test_no_network(tmp_path, monkeypatch, name):
    def unreachable(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", unreachable)
    start = time.monotonic()
    with pytest.raises(UserError, match=r"hub \(Name or service not known\).*data=docstrings or data=text") as caught:
        list(open_corpus({"name": name}, tmp_path / "cache").documents("train"))
    assert time.monotonic() - start < 10
    assert "\n" not in str(caught.value)
    assert not any(path.is_dir() for path in (tmp_path / "cache" / "corpora").iterdir())
