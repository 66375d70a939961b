"""All of GLUE from one command, and the command itself."""

import json
import math

import pytest

from lookupffn.data.labelled import GLUE
from lookupffn.training.finetuning import FOLDERS, finetune, scores
from tests.training.tiny import LOOKUP, MODEL, ROOT, compose, run, workspace

SETTINGS = (
    *MODEL,
    *LOOKUP,
    "tokenizer.vocab_size=300",
    "training.batch_size=4",
    "training.max_epochs=1",
    "tracker=none",
)


def official_files(folder):
    """The nine folders of GLUE's script, with 12 rows each."""
    for name, task in GLUE.items():
        path = folder / FOLDERS[name]
        path.mkdir(parents=True)
        header = [*task.columns, task.label] if task.header else []
        for file in ("train.tsv", *task.validation.values()):
            lines = ["\t".join(header)] if header else []
            for row in range(12):
                texts = [f"word{(row + side) % 3} and word{row % 5}" for side in range(len(task.columns))]
                number = row % len(task.label_names) if task.label_names else row / 3
                label = task.label_names[number] if task.spelled else str(number)
                fields = [*texts, label] if task.header else ["source", label, "", *texts]
                lines.append("\t".join(fields))
            (path / file).write_text("\n".join(lines) + "\n")


@pytest.mark.slow
def test_glue(tmp_path, tmp_path_factory, capsys):
    official_files(tmp_path / "glue")
    space = workspace(tmp_path_factory.getbasetemp())
    overrides = (*SETTINGS, "task=glue", f"task.data={tmp_path / 'glue'}", f"cache_dir={space.root}/cache")
    average = finetune(compose("finetune", *overrides, f"output_dir={tmp_path / 'out'}"))
    summaries = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("*/summary.json")]
    assert {summary["task"] for summary in summaries} == set(GLUE)
    parts = [sum(found := scores(summary).values()) / len(found) for summary in summaries]
    assert math.isclose(average, 100 * sum(parts) / 9)
    assert {"mismatched_accuracy", "accuracy"} == set(scores(next(s for s in summaries if s["task"] == "mnli")))
    assert f"GLUE  {average:.2f}" in capsys.readouterr().out
    # finished tasks are not trained again
    assert finetune(compose("finetune", *overrides, f"output_dir={tmp_path / 'out'}")) == average


@pytest.mark.slow
def test_the_command(tmp_path, tmp_path_factory):
    space = workspace(tmp_path_factory.getbasetemp())
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"word{n},{'ab'[n % 2]}\n" for n in range(8)))
    done = run(
        "finetune.py", "task=classification", f"task.train_files={tmp_path}/train.csv", *SETTINGS,
        f"task.validation_files={tmp_path}/train.csv", f"output_dir={tmp_path}/run", f"cache_dir={space.root}/cache",
        cwd=ROOT,
    )  # fmt: skip
    assert "validation accuracy" in done.stdout and "pretrained from" in done.stdout
    wrong = run("finetune.py", "task=sst", cwd=ROOT, check=False)
    assert wrong.returncode == 2 and "unknown task 'sst': did you mean" in wrong.stderr
