"""Small files in GLUE's official formats, with the quirks of the real ones."""

import logging

import numpy as np
import pytest

from lookupffn.config.data import GLUE_TASKS
from lookupffn.data.labelled import GLUE
from lookupffn.data.labelled.glue import read_official
from lookupffn.errors import UserError
from tests.data.reading import load_task


def write(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, lines in files.items():
        (folder / name.replace("__", ".")).write_bytes("\n".join(lines).encode() + b"\n")
    return folder


def texts(rows):
    return [row.texts for row in rows]


def test_cola_has_no_header(tmp_path):
    write(
        tmp_path, train__tsv=["gj04\t1\t\tOur friends won't buy it.", 'gj04\t0\t*\t"The more.'], dev__tsv=["x\t1\t\tA."]
    )
    rows = read_official("cola", tmp_path)
    assert texts(rows["train"]) == [("Our friends won't buy it.",), ('"The more.',)]
    assert [row.label for row in rows["train"]] == ["1", "0"]


def test_quotes_do_not_merge_lines(tmp_path):
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"
    lines = [header, '0\t1\t2\t"Who is\tWhat is "x\t0', '1\t3\t4\tWhy?"\tHow?\t1', "2\t5\t6\tbroken row"]
    write(tmp_path, train__tsv=lines, dev__tsv=[header, "9\t1\t2\tA?\tB?\t1"])
    rows = read_official("qqp", tmp_path)
    assert texts(rows["train"]) == [('"Who is', 'What is "x'), ('Why?"', "How?")]


def test_line_separators_of_unicode_are_text(tmp_path):
    write(tmp_path, train__tsv=["sentence\tlabel", "a\u2028b\x85c\t1"], dev__tsv=["sentence\tlabel", "d\t0\r"])
    rows = read_official("sst2", tmp_path)
    assert texts(rows["train"]) == [("a\u2028b\x85c",)]
    assert rows["validation"][0].label == "0"


def test_mnli_has_two_validation_splits_and_labels_by_name(tmp_path):
    header = "index\tgenre\tsentence1\tsentence2\tlabel1\tgold_label"
    write(
        tmp_path,
        train__tsv=[header, "0\tf\tp\th\tneutral\tcontradiction"],
        dev_matched__tsv=[header, "0\tf\tp\th\tneutral\tneutral"],
        dev_mismatched__tsv=[header, "0\tf\tp\th\tneutral\tentailment"],
    )
    data = load_task({"name": "mnli", "data": str(tmp_path)})
    assert {split: examples.labels.tolist() for split, examples in data.splits.items()} == {
        "train": [2], "validation": [1], "validation_mismatched": [0],
    }  # fmt: skip


def test_mrpc_as_microsoft_publishes_it(tmp_path):
    lines = [
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        '1\t10\t11\tHe said "foo\tHe said foo',
        "0\t20\t21\tUp\tDown",
    ]
    write(tmp_path, msr_paraphrase_train__txt=lines, dev_ids__tsv=["20\t21"])
    rows = read_official("mrpc", tmp_path)
    assert texts(rows["train"]) == [('He said "foo', "He said foo")]
    assert texts(rows["validation"]) == [("Up", "Down")]


def test_stsb_is_a_score(tmp_path):
    header = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore"
    row = "0\tg\tf\t2012\t1\tn\tn\tA plane.\tAn air plane.\t"
    write(tmp_path, train__tsv=[header, row + "5.000", row + "0.4"], dev__tsv=[header, row + "3.2"])
    data = load_task({"name": "stsb", "data": str(tmp_path)})
    assert data.label_names is None and data.metrics == ("pearson", "spearman")
    np.testing.assert_array_equal(data.splits["train"].labels, np.float32([5.0, 0.4]))


@pytest.mark.parametrize("name", ["qnli", "rte", "wnli"])
def test_the_other_pairs(name, tmp_path):
    task = GLUE[name]
    label = task.label_names[1] if task.spelled else "1"
    header = "\t".join(("index", *task.columns, "label"))
    write(tmp_path, train__tsv=[header, f"0\ta\tb\t{label}"], dev__tsv=[header, f"0\tc\td\t{label}"])
    data = load_task({"name": name, "data": str(tmp_path)})
    assert data.splits["train"].texts == [("a", "b")] and data.splits["validation"].labels.tolist() == [1]


def test_row_counts_are_checked(tmp_path, caplog):
    sst2 = {"train__tsv": ["sentence\tlabel", "a\t1"], "dev__tsv": ["sentence\tlabel", "b\t0"]}
    write(tmp_path, **sst2)
    with caplog.at_level(logging.WARNING):
        assert not load_task({"name": "sst2", "data": str(tmp_path)}).official
    assert "train has 1 rows, GLUE's 67,349; validation has 1 rows, GLUE's 872" in caplog.text
    header = "index\tsentence1\tsentence2\tlabel"
    write(
        tmp_path,
        train__tsv=[header, *(f"{n}\ta {n}\tb\t{n % 2}" for n in range(635))],
        dev__tsv=[header, *(f"{n}\tc {n}\td\t{n % 2}" for n in range(71))],
    )
    assert load_task({"name": "wnli", "data": str(tmp_path)}).official


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["sentence\tlabel", "good\t2"], "train.tsv, line 2: the label '2' is not one of negative, positive"),
        (["sentence\tlabel", "good"], "train.tsv, line 2: 1 columns where at least 2 are needed"),
        (["text\tlabel", "good\t1"], "train.tsv has no column 'sentence' (columns: text, label)"),
        (["sentence\tlabel", " \t1"], "train.tsv, line 2: the sentence is empty"),
        (["sentence\tlabel"], "the train split is empty"),
    ],
)
def test_broken_files_are_one_line(tmp_path, lines, message):
    write(tmp_path, train__tsv=lines, dev__tsv=["sentence\tlabel", "b\t0"])
    with pytest.raises(UserError) as error:
        load_task({"name": "sst2", "data": str(tmp_path)})
    assert message in str(error.value)


def test_missing_files_and_unknown_tasks(tmp_path):
    with pytest.raises(UserError, match=r"has no train\.tsv, which task=rte reads its train split from"):
        load_task({"name": "rte", "data": str(tmp_path)})
    with pytest.raises(UserError, match="no folder"):
        load_task({"name": "rte", "data": str(tmp_path / "nothing")})
    with pytest.raises(UserError, match="unknown task 'sst3': did you mean 'sst2'"):
        load_task({"name": "sst3"})


def test_hub(monkeypatch):
    asked = []

    def load_dataset(repository, config, split):
        asked.append((repository, config, split))
        return [{"premise": "p", "hypothesis": split, "label": 1}]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    data = load_task({"name": "mnli", "data": None})
    assert data.splits["validation"].texts == [("p", "validation_matched")]
    assert ("nyu-mll/glue", "mnli", "validation_mismatched") in asked


def test_hub_out_of_reach_is_one_line(monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr("datasets.load_dataset", fail)
    with pytest.raises(UserError, match=r"cannot get cola from the Hugging Face hub \(no route\).*task\.data="):
        load_task({"name": "cola"})


def test_the_tasks_are_those_of_the_config():
    assert tuple(GLUE) == GLUE_TASKS
