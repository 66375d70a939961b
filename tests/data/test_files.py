"""Files are found by their names and told apart by what they are."""

import json
import os
import time

import pytest

from lookupffn.data.corpus.files import content_digests, find_files
from lookupffn.errors import UserError
from tests.data.reading import open_corpus

from .conftest import write_jsonl


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "a.txt").write_text("once")
    return tmp_path


def names(found):
    return [path.name for path in found]


def test_a_file_is_read_once_whatever_leads_to_it(folder):
    os.symlink(folder / "s" / "a.txt", folder / "s" / "b.txt")
    os.link(folder / "s" / "a.txt", folder / "s" / "c.txt")
    os.symlink(folder / "s", folder / "s" / "loop")
    os.symlink(folder, folder / "s" / "other loop")
    for patterns in (
        str(folder / "s" / "*.txt"),
        ["s/a.txt", str(folder / "s" / "a.txt"), "s/../s/a.txt", "s/b.txt"],
        "s/**/*.txt",
        "**/*.txt",
        "s/**",
    ):
        assert names(find_files(patterns, "x")) == ["a.txt"]


@pytest.mark.parametrize("patterns", ["s/pipe.txt", "s/*.txt", "s/zeros.txt"])
def test_what_may_block_or_never_end_is_refused(folder, patterns):
    os.mkfifo(folder / "s" / "pipe.txt")
    os.symlink("/dev/zero", folder / "s" / "zeros.txt")
    with pytest.raises(UserError, match="not an ordinary file"):
        find_files(patterns, "x")


def test_globs(folder):
    for name in ("s/deep/er/d.txt", "s/.hidden/h.txt", "s/.h.txt", "t/e.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    assert names(find_files("**/*.txt", "x")) == ["a.txt", "d.txt", "e.txt"]
    assert names(find_files(str(folder / "?/*.txt"), "x")) == ["a.txt", "e.txt"]
    assert names(find_files("[!s]/*", "x")) == ["e.txt"]
    assert names(find_files("s/**/er/*.txt", "x")) == ["d.txt"]
    assert names(find_files("s/.h*", "x")) == [".h.txt"]
    for pattern in ("u/*.txt", "s/*.jsonl", "[s/a.txt"):
        with pytest.raises(UserError, match="no file matches"):
            find_files(pattern, "x")


@pytest.mark.parametrize("name", ["[v1] books", "what?", "a*b", "[!s]"])
def test_a_folder_may_have_a_name_that_looks_like_a_pattern(folder, monkeypatch, name):
    (folder / name).mkdir()
    (folder / name / "a.jsonl").write_text("{}")
    (folder / name / "[1].jsonl").write_text("[]")
    for pattern in (f"{name}/*.jsonl", str(folder / name / "*.jsonl")):
        assert sorted(names(find_files(pattern, "x"))) == ["[1].jsonl", "a.jsonl"]
    monkeypatch.chdir(folder / name)
    assert sorted(names(find_files(os.path.abspath("*.jsonl"), "x"))) == ["[1].jsonl", "a.jsonl"]
    assert names(find_files("[1].jsonl", "x")) == ["[1].jsonl"]


def test_one_text_in_both_splits_is_refused(folder):
    for name in ("train", "copy", "other"):
        write_jsonl(folder / f"{name}.jsonl", ["the other text" if name == "other" else "the same text"])
    options = {"name": "text", "train_files": ["other.jsonl", "train.jsonl"]}
    for validation in ("copy.jsonl", "train.jsonl"):
        corpus = open_corpus({**options, "validation_files": validation}, folder / "cache")
        corpus.fingerprint("validation")
        with pytest.raises(UserError, match=rf"train\.jsonl in .* and {validation} in .* are the same text") as caught:
            corpus.fingerprint("train")
        assert "\n" not in str(caught.value)


def test_digests_are_remembered_and_changes_said(folder, caplog):
    path = folder / "s" / "a.txt"
    first = content_digests([path], folder / "cache")
    assert content_digests([path], folder / "cache") == first
    assert not caplog.records
    path.write_text("twice, then")
    assert content_digests([path], folder / "cache") != first
    assert "a.txt has changed since it was last read" in caplog.text
    (folder / "cache" / "file_digests.json").write_text('{"a": 1}')
    assert len(content_digests([path], folder / "cache")) == 1


@pytest.mark.parametrize("known", [0, 50_000])
def test_the_time_for_many_files_is_in_proportion_to_their_number(folder, known):
    """Comparing each file with all others took 31 s for a thousand and four times as long for two."""
    cache = folder / "cache"
    cache.mkdir()
    (cache / "file_digests.json").write_text(json.dumps({f"/other/{i}.txt|7|{i}": "0" * 64 for i in range(known)}))
    paths = [folder / "s" / f"{i:06d}.txt" for i in range(1500)]
    for i, path in enumerate(paths):
        path.write_text(f"file {i}\n")
    start = time.monotonic()
    digests = content_digests(find_files("s/0*.txt", "x"), cache)
    assert len(set(digests)) == 1500
    assert time.monotonic() - start < 20  # 70 s where every file was compared with every other
