"""Fine-tuning end to end, on sentences whose label is a word in them."""

import json
import logging
import random
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, pipeline

import lookupffn  # noqa: F401 registers the Auto classes
from lookupffn.errors import UserError
from lookupffn.objectives import SequenceClassification
from lookupffn.training import train
from tests.training.forks import in_fork
from tests.training.tiny import LOOKUP, MODEL, Workspace, compose, metrics, weights, workspace

SETTINGS = (
    "training.batch_size=8", "training.max_epochs=2", "training.log_every=2", "training.checkpoint_every=3",
    "training.validate_every=6", "optimizer.lr=5e-3", "tracker=none",
)  # fmt: skip
WORDS = ["alpha", "beta", "gamma", "delta", "omega", "zeta"]


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return workspace(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def pretrained(space: Workspace, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    space.train(f"output_dir={folder}")
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("labelled")
    draw = random.Random(0)
    for name, rows in (("train", 60), ("dev", 30)):
        lines = ["sentence\tlabel"]
        for row in range(rows):
            words = draw.choices(WORDS, k=draw.randint(1, 12))
            words.insert(draw.randint(0, len(words)), "good" if row % 2 else "bad")
            lines.append(" ".join(words) + f"\t{row % 2}")
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def finetune(space, files, *more, **kwargs):
    chosen = () if any(text.startswith("task=") for text in more) else ("task=sst2", f"task.data={files}")
    new = () if any(text.startswith("checkpoint=") for text in more) else (*MODEL, *LOOKUP, "tokenizer.vocab_size=300")
    overrides = [*SETTINGS, *new, *chosen, f"cache_dir={space.root}/cache", *more]
    return train(compose("finetune", *overrides), SequenceClassification, **kwargs)


def test_from_a_pretrained_run(space, pretrained, files, tmp_path):
    summary = finetune(space, files, f"checkpoint={pretrained}", f"output_dir={tmp_path / 'run'}")
    assert summary["task"] == "sst2" and summary["pretrained_from"] == str(pretrained / "model")
    assert summary["ffn"] == "lookup" and summary["steps"] == 2 * (60 // 8)
    assert 0 <= summary["validation_accuracy"] <= 1 and summary["floor"] == {"accuracy": 0.5}
    assert summary["pretraining"]["tokens"] == 6 * 8 * 32 and summary["official_splits"] is False
    # the encoder started from the pretrained weights: two epochs do not move an embedding far
    before = weights(pretrained)["roberta_prelayernorm.embeddings.position_embeddings.weight"]
    after = weights(tmp_path / "run")["roberta_prelayernorm.embeddings.position_embeddings.weight"]
    assert (after - before).norm() < 0.7 * before.norm()
    line = metrics(tmp_path / "run")[-1]
    assert line["validation_accuracy"] == summary["validation_accuracy"]


@pytest.mark.slow
def test_learns_what_a_word_says(space, files, tmp_path):
    summary = finetune(space, files, "training.max_epochs=20", f"output_dir={tmp_path / 'run'}")
    assert summary["pretrained_from"] is None
    assert summary["validation_accuracy"] > 0.8


def test_the_saved_classifier_loads_with_its_label_names(space, files, tmp_path):
    finetune(space, files, f"output_dir={tmp_path / 'run'}")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run/model")
    assert model.config.id2label == {0: "negative", 1: "positive"}
    answer = pipeline("text-classification", model=str(tmp_path / "run/model"))("alpha good beta")
    assert answer[0]["label"] in ("negative", "positive")


@pytest.mark.slow
def test_killed_and_resumed_is_equal_to_the_last_bit(space, pretrained, files, tmp_path, one_thread):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    finetune(space, files, f"checkpoint={pretrained}", f"output_dir={whole}")

    def killed():
        from lookupffn.training.step import Updater
        from tests.training.test_kills import die, nth

        Updater.update = nth(8, Updater.update, die)
        finetune(space, files, f"checkpoint={pretrained}", f"output_dir={cut}")

    in_fork(killed)
    assert not (cut / "summary.json").exists() and list((cut / "checkpoints").iterdir())
    finetune(space, files, f"checkpoint={pretrained}", f"output_dir={cut}")
    assert metrics(whole) == metrics(cut)
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(cut)[name]), name


def test_evaluation_batch_size_changes_no_metric(space, files, tmp_path):
    found = [
        finetune(space, files, f"evaluation.batch_size={size}", f"output_dir={tmp_path / str(size)}")
        for size in (1, 7, 64)
    ]
    assert len({summary["validation_accuracy"] for summary in found}) == 1
    losses = [summary["validation_loss"] for summary in found]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5)


@pytest.mark.parametrize(("what", "still"), [("tables", ["ffn.table"]), ("ffn", ["ffn."]), ("encoder", ["roberta_"])])
def test_freezing(space, pretrained, files, tmp_path, what, still):
    finetune(space, files, f"checkpoint={pretrained}", f"task.freeze={what}", f"output_dir={tmp_path / 'run'}")
    before, after = weights(pretrained), weights(tmp_path / "run")
    shared = [name for name in after if name in before]
    frozen = [name for name in shared if any(part in name for part in still)]
    assert frozen and all(torch.equal(before[name], after[name]) for name in frozen)
    if what != "encoder":
        assert any(not torch.equal(before[name], after[name]) for name in shared if name not in frozen)


def test_regression_and_pairs(space, tmp_path):
    draw = random.Random(1)
    for name, rows in (("train", 40), ("dev", 20)):
        records = []
        for _ in range(rows):
            one, other = draw.choice(WORDS), draw.choice(WORDS)
            records.append({"sentence1": one, "sentence2": other, "score": 4.5 if one == other else 0.5})
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    summary = finetune(
        space, None, "task=classification", f"task.train_files={tmp_path}/train.jsonl",
        f"task.validation_files={tmp_path}/dev.jsonl", f"output_dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert {"validation_pearson", "validation_spearman"} <= summary.keys() and summary["label_names"] is None
    assert (
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "run/model").config.problem_type == "regression"
    )


def test_long_sentences_are_cut_and_counted(space, files, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        summary = finetune(space, files, "task.max_length=8", f"output_dir={tmp_path / 'run'}")
    assert summary["truncated"]["train"] > 0
    assert f"{summary['truncated']['train']} of 60 examples are longer than 8 tokens and are cut" in caplog.text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.freeze=head"], "task.freeze"),
        (["task.max_length=4000"], "task.max_length=4000"),
        (["training.batch_size=64"], "more than the 60 training examples"),
        (["checkpoint=/nowhere"], "no folder /nowhere"),
        (["task.tuning_fraction=1.5"], "task.tuning_fraction"),
    ],
)
def test_one_line_errors(space, files, tmp_path, overrides, message):
    with pytest.raises(UserError) as error:
        finetune(space, files, *overrides, f"output_dir={tmp_path / 'run'}")
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_labelled_file_that_changed_is_not_mixed_in(space, files, tmp_path, one_thread):
    changed = tmp_path / "files"
    shutil.copytree(files, changed)

    def killed():
        from lookupffn.training.step import Updater
        from tests.training.test_kills import die, nth

        Updater.update = nth(8, Updater.update, die)
        finetune(space, changed, f"output_dir={tmp_path / 'run'}")

    in_fork(killed)
    with (changed / "train.tsv").open("a") as file:
        file.write("alpha good\t1\n")
    with pytest.raises(UserError, match="the data is not what this run started with"):
        finetune(space, changed, f"output_dir={tmp_path / 'run'}")
