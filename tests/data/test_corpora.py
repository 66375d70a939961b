import gzip
import json
import os
import random

import pyarrow
import pyarrow.parquet
import pytest

from lookupffn.errors import UserError
from tests.data.reading import open_corpus

from .conftest import sentences, write_jsonl


def text(tmp_path, **options):
    return open_corpus({"name": "text", **options}, tmp_path / "cache")


def test_unknown_names():
    with pytest.raises(UserError, match="did you mean 'docstrings'"):
        open_corpus({"name": "docstring"}, None)
    with pytest.raises(UserError, match="did you mean 'train_files'"):
        open_corpus({"name": "text", "train_file": "x"}, None)
    for fraction in (1.5, -0.1, "some", True, float("nan")):
        with pytest.raises(UserError, match="validation_fraction must be"):
            open_corpus({"name": "docstrings", "validation_fraction": fraction}, None)
    with pytest.raises(UserError, match="shard_characters must be a whole number of at least 1, not 'x'"):
        open_corpus({"name": "wikipedia", "shard_characters": "x"}, None)


# text


def test_every_format_gives_the_same_documents(tmp_path):
    documents = sentences(30)
    lines = "".join(json.dumps({"body": document}) + "\n" for document in documents)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    pyarrow.parquet.write_table(pyarrow.table({"body": [*documents, None, " "]}), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.jsonl.gz", "a.parquet"):
        corpus = text(tmp_path, train_files=str(tmp_path / name), text_field="body", validation_fraction=0)
        assert list(corpus.documents("train")) == documents
        assert not corpus.has("validation")


def test_txt_is_cut_between_paragraphs(tmp_path):
    paragraphs = [sentence * 3 for sentence in sentences(400)]
    (tmp_path / "a.txt").write_text("\ufeff" + "\n\n".join(paragraphs), encoding="utf-8")
    documents = list(text(tmp_path, train_files=str(tmp_path / "a.txt"), validation_fraction=0).documents("train"))
    assert len(documents) > 5
    assert [p for document in documents for p in document.split("\n\n")] == paragraphs
    (tmp_path / "b.txt").write_text("word " * 600_000)  # one line of three million characters
    documents = list(text(tmp_path, train_files=str(tmp_path / "b.txt"), validation_fraction=0).documents("train"))
    assert sum(len(document.split()) for document in documents) == pytest.approx(600_000, abs=5)
    assert len(documents) > 1


def test_long_json_line(tmp_path):
    documents = ["word " * 500_000, "another"]
    path = write_jsonl(tmp_path / "a.jsonl", documents)
    assert list(text(tmp_path, train_files=path, validation_fraction=0).documents("train")) == documents


def test_globs_and_lists(tmp_path):
    for name in "cab":
        write_jsonl(tmp_path / f"{name}.jsonl", [name])
    corpus = text(tmp_path, train_files=[str(tmp_path / "*.jsonl"), str(tmp_path / "a.jsonl")], validation_fraction=0)
    assert list(corpus.documents("train")) == ["a", "b", "c"]


def test_automatic_validation_split(tmp_path):
    documents = sentences(300)
    path = write_jsonl(tmp_path / "a.jsonl", documents + documents[:50])
    corpus = text(tmp_path, train_files=path, validation_fraction=0.2)
    train, validation = (list(corpus.documents(split)) for split in ("train", "validation"))
    assert set(train) | set(validation) == set(documents)
    assert not set(train) & set(validation)  # a text that stands twice is in one split
    assert 0.1 < len(validation) / 350 < 0.3
    assert corpus.fingerprint("train") != corpus.fingerprint("validation")


def test_fingerprint_is_of_the_content(tmp_path):
    path = tmp_path / "a.jsonl"
    write_jsonl(path, ["one text"])
    first = text(tmp_path, train_files=str(path)).fingerprint("train")
    os.utime(path, (1, 1))
    (tmp_path / "b.jsonl").write_bytes(path.read_bytes())
    assert text(tmp_path, train_files=str(path)).fingerprint("train") == first
    assert text(tmp_path, train_files=str(tmp_path / "b.jsonl")).fingerprint("train") == first
    write_jsonl(path, ["two text"])  # of the same length
    assert text(tmp_path, train_files=str(path)).fingerprint("train") != first


def test_invalid_utf8_is_replaced_counted_and_reported(tmp_path, caplog):
    (tmp_path / "a.txt").write_bytes(b"good \xff\xfe bad\n\nend \xc3")
    corpus = text(tmp_path, train_files=str(tmp_path / "a.txt"), validation_fraction=0)
    for _ in range(2):
        assert list(corpus.documents("train")) == ["good \ufffd\ufffd bad\n\nend \ufffd"]
    corpus.report()
    corpus.report()
    assert len(caplog.records) == 1
    assert "3 invalid UTF-8 sequences" in caplog.text and "a.txt (3)" in caplog.text


def test_half_surrogate_pairs_are_replaced_and_counted(tmp_path, caplog):
    lines = [r'{"text": "half \ud800 and \udc00\udc01"}', r'{"text": "a pair \ud83d\ude00 and \u00e9"}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    corpus = text(tmp_path, train_files=str(tmp_path / "a.jsonl"), validation_fraction=0)
    assert list(corpus.documents("train")) == ["half \ufffd and \ufffd\ufffd", "a pair \U0001f600 and é"]
    corpus.report()
    assert "3 invalid UTF-8 sequences" in caplog.text


@pytest.mark.parametrize("large", [False, True])
def test_invalid_utf8_in_parquet_is_replaced_and_counted(tmp_path, caplog, large):
    kind = pyarrow.large_binary() if large else pyarrow.binary()
    raw = pyarrow.array([b"good", b"bad \xff\xfe", None], type=kind)
    strings = (pyarrow.LargeStringArray if large else pyarrow.StringArray).from_buffers(
        3, raw.buffers()[1], raw.buffers()[2], raw.buffers()[0]
    )
    pyarrow.parquet.write_table(pyarrow.table({"text": strings}), tmp_path / "a.parquet")
    corpus = text(tmp_path, train_files=str(tmp_path / "a.parquet"), validation_fraction=0)
    assert list(corpus.documents("train")) == ["good", "bad \ufffd\ufffd"]
    corpus.report()
    assert "2 invalid UTF-8 sequences" in caplog.text and "a.parquet (2)" in caplog.text


@pytest.mark.parametrize("content", ["[]", "3", "null", "{", "[" * 100_000, '{"x": 1}'])
def test_damaged_memory_of_digests_is_written_anew(tmp_path, content):
    path = write_jsonl(tmp_path / "a.jsonl", ["one text"])
    expected = text(tmp_path, train_files=path).fingerprint("train")
    memory = tmp_path / "cache" / "file_digests.json"
    memory.write_text(content)
    assert text(tmp_path, train_files=path).fingerprint("train") == expected
    assert any(str(tmp_path) in key for key in json.loads(memory.read_text()))


def test_progress_while_large_files_are_read_for_their_digest(tmp_path, monkeypatch, capsys):
    path = write_jsonl(tmp_path / "a.jsonl", sentences(100))
    monkeypatch.setattr("lookupffn.storage._SILENT_BYTES", 1000)
    for shown in (True, False):  # the second time the digest is remembered
        text(tmp_path, train_files=path).fingerprint("train")
        assert ("checking files" in capsys.readouterr().err) == shown


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "fine"}\n\n{"text": broken}\n', r"a\.jsonl, line 3: not valid JSON"),
        ("a.jsonl", b'{"text": "fine"}\n["text"]\n', r"line 2: no text under 'text'"),
        ("a.jsonl", b'{"body": "fine"}\n', r"line 1: no text under 'text' \(found 'body'\).*data\.text_field"),
        ("a.jsonl", b'{"text": 3}\n', r"line 1: no text under 'text'"),
        ("a.jsonl", b'"text"\n', r"line 1: no text under 'text' \(found a JSON str\)"),
        ("a.jsonl", b'{"text": "fine"}\n{"text": ' + b"[" * 200_000, r"a\.jsonl, line 2: not valid JSON .*too deeply"),
        ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}", r"line 1: not valid JSON"),
        ("a.jsonl", b'{"text": "never closed', r"line 1: not valid JSON \(Unterminated string starting at column 10\)"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"text": "' + random.Random(0).randbytes(5000).hex().encode() + b'"}\n')[:-900],
            "incomplete gzip",
        ),
        ("a.jsonl.gz", b"plain text", "incomplete gzip"),
        ("a.parquet", b"plain text", "as parquet"),
    ],
)
def test_bad_content(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    corpus = text(tmp_path, train_files=str(tmp_path / name), validation_fraction=0)
    with pytest.raises(UserError, match=message) as caught:
        list(corpus.documents("train"))
    assert "\n" not in str(caught.value)


def test_bad_parquet_column(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"], "n": [1]}), tmp_path / "a.parquet")
    for field in ("text", "n"):
        corpus = text(tmp_path, train_files=str(tmp_path / "a.parquet"), text_field=field)
        with pytest.raises(UserError, match=r"no column of strings .*body, n"):
            list(corpus.documents("train"))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ("none.jsonl", r"data\.train_files: no such file"),
        ("*.jsonl", r"data\.train_files: no file matches"),
        ([], "empty list"),
        (".", "is a folder"),
        ("a.csv", r"suffix must be one of \.txt"),
    ],
)
def test_bad_files(tmp_path, monkeypatch, files, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(UserError, match=message):
        text(tmp_path, train_files=files)


def test_no_files(tmp_path):
    with pytest.raises(UserError, match=r"needs data\.train_files"):
        text(tmp_path, train_files=None)


def test_the_text_field_may_be_a_number(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", ["zero"], field="0")
    corpus = text(tmp_path, train_files=str(tmp_path / "a.jsonl"), text_field=0, validation_fraction=0)
    assert list(corpus.documents("train")) == ["zero"]
