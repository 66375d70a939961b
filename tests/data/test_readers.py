"""The same records give the same documents in any format, and what is not text is refused."""

import bz2
import gzip
import json
import os

import pyarrow
import pyarrow.parquet
import pytest

from lookupffn.data.corpus.readers import read_documents
from lookupffn.errors import UserError

from .conftest import sentences


def read(path, field="text"):
    return list(read_documents(path, field))


def zstd(content):
    return pyarrow.compress(content, codec="zstd", asbytes=True)


def write(path, content):
    """A file, compressed as its name says."""
    packed = {".gz": gzip.compress, ".zst": zstd}.get(path.suffix, bytes)
    path.write_bytes(packed(content if isinstance(content, bytes) else content.encode()))
    return path


def parquet(path, columns, **options):
    pyarrow.parquet.write_table(pyarrow.table(columns), path, **options)
    return path


RECORDS = [
    {"text": "first é", "n": 1, "meta": {"text": "inner one"}, "meta.text": "flat one"},
    {"text": None, "n": 2, "meta": None, "meta.text": None},
    {"n": 3, "meta": {"other": "x"}},
    {"text": " ", "meta": {"text": "inner four"}},
    {"text": "last\nof all", "meta": {"text": None}},
]


@pytest.mark.parametrize("records", [RECORDS, RECORDS[::-1]])
def test_every_format_gives_the_same_documents(tmp_path, records):
    lines = "\n\n".join(map(json.dumps, records)) + "\n"
    files = [write(tmp_path / f"a.jsonl{packed}", lines) for packed in ("", ".gz", ".zst")]
    files += [write(tmp_path / f"a.json{packed}", json.dumps(records, indent=1)) for packed in ("", ".gz", ".zst")]
    files.append(write(tmp_path / "lines.json", lines))
    flat = [{key: value for key, value in record.items() if key != "meta.text"} for record in records]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(flat), tmp_path / "a.parquet")
    files.append(tmp_path / "a.parquet")
    texts = [record["text"] for record in records if (record.get("text") or "").strip()]
    assert [read(path) for path in files] == [texts] * 8
    without_flat = [{key: record[key] for key in record if key != "meta.text"} for record in records]
    write(tmp_path / "nested.jsonl", "\n".join(map(json.dumps, without_flat)))
    inner = [(record.get("meta") or {}).get("text") for record in records]
    expected = [text for text in inner if text]
    assert read(tmp_path / "nested.jsonl", "meta.text") == read(tmp_path / "a.parquet", "meta.text") == expected


def test_txt_is_read_from_compressed_files_too(tmp_path):
    text = "\n\n".join(sentences(300))
    expected = read(write(tmp_path / "a.txt", text))
    assert len(expected) > 2
    for packed in (".gz", ".zst"):
        assert read(write(tmp_path / f"a.txt{packed}", text)) == expected
    (tmp_path / "b.txt.zst").write_bytes(zstd(text[:5000].encode()) + zstd(text[5000:].encode()))
    assert read(tmp_path / "b.txt.zst") == expected


@pytest.mark.parametrize("codec", ["utf-16", "utf-16-be", "utf-32", "utf-32-be", "utf-8-sig"])
def test_a_byte_order_mark_says_the_encoding(tmp_path, codec):
    def marked(text):
        return (text if codec in ("utf-16", "utf-32", "utf-8-sig") else "\ufeff" + text).encode(codec)

    assert read(write(tmp_path / "a.txt", marked("Plain words.\r\nNaïve ones.\n"))) == ["Plain words.\nNaïve ones."]
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\r\n" for text in ("one é", "two"))
    assert read(write(tmp_path / "a.jsonl.gz", marked(lines))) == ["one é", "two"]


def test_byte_order_marks_inside_are_no_text(tmp_path):
    assert read(write(tmp_path / "a.jsonl", '{"text": "a"}\n\ufeff{"text": "b"}\n')) == ["a", "b"]
    assert read(write(tmp_path / "a.txt", "\ufeffone\n\ufefftwo")) == ["one\ntwo"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Plain words.".encode("utf-16-le"), "UTF-16 without a byte order mark"),
        ("Текст.".encode("utf-16-be") * 9, "is not text"),
        (b"\x7fELF\2\1\1" + bytes(200) + b"text", "is not text"),
        (gzip.compress(b"x" * 100, mtime=0), "is gzip data, not text"),
        (zstd(b"x" * 100), "is zstd data"),
        (bz2.compress(b"x" * 100), "is bzip2 data"),
        (bytes(range(1, 256)) * 8, "is not text"),
        (b"a word " + bytes(range(0xC0, 0x100)) * 9, "is not text"),
    ],
)
def test_what_is_not_text_is_refused(tmp_path, content, message):
    for name in ("a.txt", "a.jsonl"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message) as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value) and name in str(caught.value)


def test_a_few_bad_bytes_are_replaced(tmp_path):
    assert read(write(tmp_path / "nul.txt", "a log with a stray\0 byte")) == ["a log with a stray\0 byte"]
    text = "Der Fluß trägt die großen Vögel über die Brücken nach Süden. " * 20
    (found,) = read(write(tmp_path / "a.txt", text.encode("latin-1")))
    assert found.count("\ufffd") == 20 * 7


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.zst", "a.jsonl.zst"])
def test_damaged_compression(tmp_path, name):
    line = json.dumps({"text": os.urandom(3000).hex()}) + "\n"
    path = write(tmp_path / name, line * 20)
    for content in (path.read_bytes()[:-400], b"no such thing"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"{name}|gzip") as caught:
            read(path)
        assert "\n" not in str(caught.value)


# columns


def test_text_columns_of_every_kind(tmp_path):
    kinds = {
        "category": pyarrow.array(["a", None, "a"]).dictionary_encode(),
        "view": pyarrow.array(["a", None, "a"], type=pyarrow.string_view()),
        "large": pyarrow.array(["a", None, "a"], type=pyarrow.large_string()),
        "nulls": pyarrow.array([None] * 3, type=pyarrow.null()),
        "0": pyarrow.array(["zero", "", None]),
    }
    path = parquet(tmp_path / "a.parquet", kinds)
    assert read(path, "category") == read(path, "view") == read(path, "large") == ["a", "a"]
    assert read(path, "nulls") == [] and read(path, "0") == ["zero"]
    nulls = write(tmp_path / "a.jsonl", '{"nulls": null}\n' * 3)
    assert read(nulls, "nulls") == []


def test_a_flat_column_comes_before_a_nested_one(tmp_path):
    both = parquet(tmp_path / "a.parquet", {"m": [{"text": "no"}], "m.text": ["yes"]})
    lines = write(tmp_path / "a.jsonl", '{"m": {"text": "no"}, "m.text": "yes"}')
    assert read(both, "m.text") == read(lines, "m.text") == ["yes"]
    nested = [{"m": {"a": {"text": "yes", "n": 1}}}, {"m": {"a": None}}, {"m": None}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(nested), tmp_path / "c.parquet")
    write(tmp_path / "c.json", json.dumps(nested))
    assert read(tmp_path / "c.parquet", "m.a.text") == read(tmp_path / "c.json", "m.a.text") == ["yes"]


def test_a_nested_column_of_categories(tmp_path):
    texts = pyarrow.array(["a", "b", "a"]).dictionary_encode()
    parquet(tmp_path / "a.parquet", {"m": pyarrow.StructArray.from_arrays([texts], ["text"])})
    assert read(tmp_path / "a.parquet", "m.text") == ["a", "b", "a"]


def test_two_columns_of_one_name_are_refused(tmp_path):
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet: 2 columns are called 'text'"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "[1, 2]", r"a\.json, record 1: no text under 'text' \(found a JSON int\)"),
        ("a.json", '[{"body": "x"}]', r"record 1: no text under 'text' \(found 'body'\)"),
        ("a.json", '[{"text": "x"}, {"text": ', r"a\.json, line 1: not valid JSON"),
        ("a.json", '{"text": "x"}\n{"text": 3}', r"a\.json, line 2: .*'text' is a JSON int"),
        ("a.jsonl", '{"a": 1}\n' * 2000 + '{"text": "late"}', r"a\.jsonl, line 1: no text under 'text'"),
        ("a.jsonl", '{"m": {"t": "x"}}', r"line 1: no text under 'text'"),
    ],
)
def test_bad_records(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message) as caught:
        read(write(tmp_path / name, content))
    assert "\n" not in str(caught.value)


def test_an_empty_file_has_no_documents(tmp_path):
    for name in ("a.txt", "a.json", "a.jsonl", "a.txt.gz"):
        assert read(write(tmp_path / name, "")) == []
