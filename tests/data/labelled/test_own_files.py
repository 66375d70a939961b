import json
import os

import pyarrow
import pyarrow.parquet
import pytest

from lookupffn.errors import UserError
from tests.data.reading import load_task

RECORDS = [{"text": 'say "hi",\nthen', "label": "b"}, {"text": "no", "label": "a"}, {"text": "x\ty", "label": "b"}]


def write(path, records):
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        separator = "," if path.suffix == ".csv" else "\t"
        quote = (lambda t: '"' + t.replace('"', '""') + '"') if path.suffix == ".csv" else str
        lines = [separator.join(records[0])] + [separator.join(quote(v) for v in r.values()) for r in records]
        path.write_text("\n".join(lines) + "\n")
    return str(path)


def own(path, **more):
    return load_task({"name": "classification", "train_files": path, "validation_files": path, **more})


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_formats_agree(tmp_path, suffix):
    data = own(write(tmp_path / f"t{suffix}", RECORDS))
    assert data.splits["train"].texts == [(r["text"],) for r in RECORDS]
    assert data.label_names == ("a", "b") and data.splits["train"].labels.tolist() == [1, 0, 1]
    assert data.metrics == ("accuracy", "f1")


def test_tsv_takes_quotes_as_they_are(tmp_path):
    data = own(write(tmp_path / "t.tsv", [{"sentence": '"a', "label": "10"}, {"sentence": 'b"', "label": "9"}]))
    assert data.splits["train"].texts == [('"a',), ('b"',)]
    assert data.label_names == ("9", "10")  # numbers in the order of their size


def test_numbers(tmp_path):
    path = write(tmp_path / "t.jsonl", [{"text": "a", "score": 1}, {"text": "b", "score": 2.5}])
    data = own(path)
    assert data.label_names is None and data.splits["train"].labels.tolist() == [1.0, 2.5]
    assert own(path, label_type="classes").label_names == ("1", "2.5")


def test_named_columns_and_pairs(tmp_path):
    path = write(tmp_path / "t.jsonl", [{"q": "a", "r": "b", "y": 0}, {"q": "c", "r": "d", "y": 1}])
    data = own(path, text_columns=["q", "r"], label_column="y")
    assert data.splits["train"].texts == [("a", "b"), ("c", "d")]


def test_a_share_of_the_training_rows_to_tune_on(tmp_path):
    path = write(tmp_path / "t.jsonl", [{"text": f"{n // 2}", "label": n % 2} for n in range(400)])
    data = own(path, tuning_fraction=0.25)
    train, held = (set(data.splits[split].texts) for split in ("train", "validation"))
    assert not train & held and len(train | held) == 200 and 30 <= len(held) <= 70


@pytest.mark.parametrize(
    ("records", "options", "message"),
    [
        ([{"text": "a", "label": 1}], {"validation_files": None}, "has no validation split"),
        ([{"text": "a", "label": 1}], {"text_columns": ["body"]}, "has no column 'body' (columns: text, label)"),
        ([{"body": "a", "label": 1}], {}, "no column of text by a known name (columns: body, label)"),
        ([{"text": "a", "label": 1}, {"text": None, "label": 1}], {}, "line 2: text is None, not text"),
        ([{"text": "a", "label": 1}, {"text": " ", "label": 1}], {}, "line 2: the sentence is empty"),
        ([{"text": "a", "label": "x"}], {"label_type": "number"}, "line 1: the label 'x' is not a number"),
    ],
)
def test_one_line_errors(tmp_path, records, options, message):
    with pytest.raises(UserError) as error:
        own(write(tmp_path / "t.jsonl", records), **options)
    assert message in str(error.value)


def test_a_label_that_training_does_not_have(tmp_path):
    train = write(tmp_path / "t.jsonl", [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}])
    dev = write(tmp_path / "d.jsonl", [{"text": "a", "label": "z"}])
    with pytest.raises(UserError, match=r"d\.jsonl, line 1: the label 'z' is not one of x, y"):
        load_task({"name": "classification", "train_files": train, "validation_files": dev})


def test_broken_csv(tmp_path):
    (tmp_path / "t.csv").write_text('text,label\n"a",1\n"b,2\n')
    with pytest.raises(UserError, match=r"t\.csv, line"):
        own(str(tmp_path / "t.csv"))


@pytest.mark.parametrize("suffix", ["tsv", "csv", "jsonl", "parquet"])
def test_a_pipe_is_refused(tmp_path, suffix):
    os.mkfifo(tmp_path / f"t.{suffix}")
    with pytest.raises(UserError, match="not an ordinary file"):
        own(str(tmp_path / f"t.{suffix}"))
