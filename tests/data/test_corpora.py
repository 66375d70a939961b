import gzip
import json
import os

import pyarrow
import pyarrow.parquet
import pytest

from lookupffn.data.corpus import open_corpus
from lookupffn.errors import UserError

from .conftest import sentences, write_jsonl


def text(tmp_path, **options):
    return open_corpus({"name": "text", **options}, tmp_path / "cache")


def test_unknown_names():
    with pytest.raises(UserError, match="did you mean 'docstrings'"):
        open_corpus({"name": "docstring"}, None)
    with pytest.raises(UserError, match="did you mean 'train_files'"):
        open_corpus({"name": "text", "train_file": "x"}, None)
    with pytest.raises(UserError, match="validation_fraction"):
        open_corpus({"name": "docstrings", "validation_fraction": 1.5}, None)


# docstrings


@pytest.fixture
def packages(tmp_path):
    """A folder of forty modules whose docstrings share some text, beside files that cannot be read."""
    root = tmp_path / "packages"
    (root / "tests").mkdir(parents=True)
    (root / "tests" / "test_it.py").write_text('"""The text of the tests is not in the corpus at all."""')
    (root / "broken.py").write_text('"""Never closed')
    (root / "bytes.py").write_bytes(b'"""\xff\xfe is not what Python calls UTF-8."""\n')
    for i, sentence in enumerate(sentences(40)):
        (root / f"module_{i:02d}.py").write_text(
            f'"""{sentence}\n\nThis paragraph stands in every one of the files."""\n'
            f"def function():\n    '''Return the value of the thing named {'abcdefghij'[i % 10] * 3} as it was.'''\n"
            'PATTERN = "\\d"\nclass Thing:\n    """Short."""\n'
        )
    return root


def test_docstrings(packages, tmp_path, recwarn):
    corpus = open_corpus(
        {"name": "docstrings", "roots": [str(packages)], "validation_fraction": 0.2}, tmp_path / "cache", 2
    )
    train, validation = list(corpus.documents("train")), list(corpus.documents("validation"))
    whole = "\n".join(train + validation)
    assert len(train) > len(validation) > 0
    assert whole.count("This paragraph stands in every one") == 1
    assert whole.count("named aaa as it was") == 1
    assert "not in the corpus" not in whole and "Short" not in whole
    lines = [{line for document in split for line in document.split("\n") if line} for split in (train, validation)]
    assert not lines[0] & lines[1]
    assert corpus.characters("train") == sum(map(len, train))
    assert not [warning for warning in recwarn if issubclass(warning.category, SyntaxWarning)]


def test_docstrings_do_not_depend_on_processes(packages, tmp_path):
    options = {"name": "docstrings", "roots": [str(packages)]}
    one, two = (open_corpus(options, tmp_path / f"cache{n}", n) for n in (1, 2))
    assert list(one.documents("train")) == list(two.documents("train"))
    assert one.fingerprint("train") == two.fingerprint("train") != one.fingerprint("validation")
    (packages / "new.py").write_text('"""Something that is new in the folder of packages."""')
    assert open_corpus(options, tmp_path / "cache1").fingerprint("train") != one.fingerprint("train")


def test_unreadable_files_are_counted(packages, tmp_path, caplog):
    caplog.set_level("INFO")
    list(open_corpus({"name": "docstrings", "roots": [str(packages)]}, tmp_path / "cache", 1).documents("train"))
    assert "2 files could not be read or parsed" in caplog.text


def test_missing_root(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        open_corpus({"name": "docstrings", "roots": [str(tmp_path / "none")]}, tmp_path)


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
    documents = list(text(tmp_path, train_files=str(tmp_path / "a.txt"), validation_fraction=0).documents("train"))
    assert documents == ["good \ufffd\ufffd bad\n\nend \ufffd"]
    assert "3 invalid UTF-8 sequences" in caplog.text and "a.txt" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "fine"}\n\n{"text": broken}\n', r"a\.jsonl, line 3: not valid JSON"),
        ("a.jsonl", b'{"text": "fine"}\n["text"]\n', r"line 2: no text under 'text'"),
        ("a.jsonl", b'{"body": "fine"}\n', r"line 1: no text under 'text' \(found 'body'\).*data\.text_field"),
        ("a.jsonl", b'{"text": 3}\n', r"line 1: no text under 'text'"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"text": "' + os.urandom(5000).hex().encode() + b'"}\n')[:-900],
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


def test_no_files_and_the_same_file_twice(tmp_path):
    with pytest.raises(UserError, match=r"needs data\.train_files"):
        text(tmp_path, train_files=None)
    path = write_jsonl(tmp_path / "a.jsonl", ["x"])
    with pytest.raises(UserError, match="take it out"):
        text(tmp_path, train_files=path, validation_files=path)
