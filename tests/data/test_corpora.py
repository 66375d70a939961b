import gzip
import json
import os

import pyarrow
import pyarrow.parquet
import pytest

from lookupffn.data.corpus import open_corpus
from lookupffn.data.corpus.prose import normalised
from lookupffn.errors import UserError

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


def test_no_line_is_in_both_splits(tmp_path):
    """Modules that document the same parameters in different paragraphs, as scientific packages do."""
    root = tmp_path / "packages"
    shared = [f"shared{'abcdefghij'[i]} : the value that many functions take" for i in range(10)]
    for i, sentence in enumerate(sentences(60)):
        folder = root / f"part{i % 7}"
        folder.mkdir(parents=True, exist_ok=True)
        other = "\n    ".join([shared[i % 10], shared[(i * 3 + 1) % 10], shared[i % 10].upper() + " 2"])
        own = f"and here a line of the module {sentence[:20]}."
        (folder / f"m{i}.py").write_text(f'def function():\n    """{sentence}\n\n    {other}\n    {own}\n    """\n')
    corpus = open_corpus({"name": "docstrings", "roots": str(root), "validation_fraction": 0.3}, tmp_path / "cache", 1)
    splits = [{normalised(line) for line in long_lines(corpus, split)} for split in ("train", "validation")]
    assert all(splits) and not splits[0] & splits[1]
    kept = {normalised(line) for line in shared}
    assert kept <= splits[0] | splits[1]  # once, not never


def long_lines(corpus, split):
    return [line for document in corpus.documents(split) for line in document.split("\n") if len(line) >= 24]


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
