"""The nine tasks of GLUE (Wang et al., arXiv 1804.07461) as their official files have them.

The files are tab-separated without any quoting: a quotation mark is a character of the sentence, and a reader of CSV
would merge lines at it. CoLA has no header. QQP has rows that lack a column, which every user of GLUE leaves out. MRPC
comes as Microsoft's two files, or as the train.tsv and dev.tsv that GLUE's script makes of them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from lookupffn.data.labelled.files import Row, read_tsv
from lookupffn.errors import UserError
from lookupffn.storage import read_text

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GlueTask:
    """One task.

    Attributes:
        hub: its configuration in nyu-mll/glue; its columns there are ``hub_columns``.
        columns: of the text in the official files, by name, or by number where there is no header.
        label: column of the label, likewise; -1 is the last.
        label_names: class names in the order of their numbers; None for a score.
        metrics: as GLUE reports them, the names in summary.json after ``validation_``.
        rows: how many rows each official split has, validation splits by the name of their file.
        validation: validation splits, name -> file; more than one for MNLI.
        header: whether the first line names the columns.
        spelled: whether the label column holds class names in place of numbers.
    """

    hub: str
    columns: tuple[str, ...] | tuple[int, ...]
    label: str | int
    label_names: tuple[str, ...] | None
    metrics: tuple[str, ...]
    rows: dict[str, int]
    hub_columns: tuple[str, ...]
    validation: dict[str, str]
    header: bool = True
    spelled: bool = False


_DEV = {"validation": "dev.tsv"}
_ENTAILMENT = ("entailment", "not_entailment")
_PAIR = ("sentence1", "sentence2")

GLUE: dict[str, GlueTask] = {
    "cola": GlueTask(
        "cola", (3,), 1, ("unacceptable", "acceptable"), ("matthews",),
        {"train": 8551, "validation": 1043}, ("sentence",), _DEV, header=False,
    ),
    "sst2": GlueTask(
        "sst2", ("sentence",), "label", ("negative", "positive"), ("accuracy",),
        {"train": 67349, "validation": 872}, ("sentence",), _DEV,
    ),
    "mrpc": GlueTask(
        "mrpc", ("#1 String", "#2 String"), "Quality", ("not_equivalent", "equivalent"), ("accuracy", "f1"),
        {"train": 3668, "validation": 408}, _PAIR, _DEV,
    ),
    "stsb": GlueTask(
        "stsb", _PAIR, "score", None, ("pearson", "spearman"), {"train": 5749, "validation": 1500}, _PAIR, _DEV,
    ),
    "qqp": GlueTask(
        "qqp", ("question1", "question2"), "is_duplicate", ("not_duplicate", "duplicate"), ("accuracy", "f1"),
        {"train": 363846, "validation": 40430}, ("question1", "question2"), _DEV,
    ),
    "mnli": GlueTask(
        "mnli", _PAIR, "gold_label", ("entailment", "neutral", "contradiction"), ("accuracy",),
        {"train": 392702, "validation": 9815, "validation_mismatched": 9832}, ("premise", "hypothesis"),
        {"validation": "dev_matched.tsv", "validation_mismatched": "dev_mismatched.tsv"}, spelled=True,
    ),
    "qnli": GlueTask(
        "qnli", ("question", "sentence"), "label", _ENTAILMENT, ("accuracy",),
        {"train": 104743, "validation": 5463}, ("question", "sentence"), _DEV, spelled=True,
    ),
    "rte": GlueTask(
        "rte", _PAIR, "label", _ENTAILMENT, ("accuracy",),
        {"train": 2490, "validation": 277}, _PAIR, _DEV, spelled=True,
    ),
    "wnli": GlueTask(
        "wnli", _PAIR, "label", ("not_entailment", "entailment"), ("accuracy",),
        {"train": 635, "validation": 71}, _PAIR, _DEV,
    ),
}  # fmt: skip

# MRPC as Microsoft publishes it; the development set is the rows of the training file that this list names
_MRPC_FILES, _MRPC_DEV = ("msr_paraphrase_train.txt", "msr_paraphrase_test.txt"), "dev_ids.tsv"


def read_official(name: str, folder: Path) -> dict[str, list[Row]]:
    """Train and validation rows of a folder of official files; labels as the files spell them.

    Args:
        name: of the task.
        folder: with the task's files.

    Returns:
        Split name ("train", "validation", "validation_mismatched") to rows, in the order of the files.

    Raises:
        UserError: a file or a column is missing, or a row is broken.
    """
    task = GLUE[name]
    if not folder.is_dir():
        raise UserError(f"task.data: no folder {folder}: give the folder of {name}'s official files")
    if name == "mrpc" and not (folder / "train.tsv").exists() and (folder / _MRPC_FILES[0]).exists():
        return _read_mrpc(task, folder)
    found = {}
    for split, file in {"train": "train.tsv", **task.validation}.items():
        path = folder / file
        if not path.exists():
            raise UserError(f"task.data: {folder} has no {file}, which task={name} reads its {split} split from")
        found[split] = read_tsv(
            path, task.columns, task.label, header=task.header, incomplete="leave out" if name == "qqp" else "refuse"
        )
    return found


def _read_mrpc(task: GlueTask, folder: Path) -> dict[str, list[Row]]:
    """Microsoft's files: GLUE's validation split is part of their training file."""
    if not (folder / _MRPC_DEV).exists():
        raise UserError(
            f"task.data: {folder} has {_MRPC_FILES[0]} but not {_MRPC_DEV}, which says what of it is GLUE's dev split"
        )
    identifiers = {tuple(line.split("\t")[:2]) for line in read_text(folder / _MRPC_DEV).split("\n") if line}
    rows = read_tsv(
        folder / _MRPC_FILES[0], (*task.columns, "#1 ID", "#2 ID"), task.label, header=True, incomplete="refuse"
    )
    splits: dict[str, list[Row]] = {"train": [], "validation": []}
    for row in rows:
        first, second, *pair = row.texts
        split = "validation" if tuple(pair) in identifiers else "train"
        splits[split].append(Row((first, second), row.label, row.where))
    return splits


def check_counts(name: str, splits: dict[str, list[Row]], folder: Path) -> bool:
    """Whether every split has GLUE's number of rows; a warning where one has not.

    Other numbers are no error: SST-2, for one, is also published with its training set split anew.
    """
    expected = GLUE[name].rows
    differing = [
        f"{split} has {len(rows):,} rows, GLUE's {expected[split]:,}"
        for split, rows in splits.items()
        if len(rows) != expected[split]
    ]
    if differing:
        logger.warning(
            "%s is not GLUE's %s (%s): its scores do not compare with published ones", folder, name,
            "; ".join(differing),
        )  # fmt: skip
    return not differing


def read_hub(name: str) -> dict[str, list[Row]]:
    """Train and validation rows from the Hugging Face hub.

    Raises:
        UserError: it cannot be reached.
    """
    import datasets

    task = GLUE[name]
    splits = {"train": "train", **{split: split for split in task.validation}}
    if len(task.validation) > 1:
        splits |= {"validation": "validation_matched"}
    found = {}
    for split, theirs in splits.items():
        try:
            rows = datasets.load_dataset("nyu-mll/glue", task.hub, split=theirs)
        except Exception as error:  # datasets raises whatever its many parts raise
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise UserError(
                f"cannot get {name} from the Hugging Face hub ({reason}): check the network, or name a folder of its "
                "official files with task.data=..."
            ) from None
        found[split] = [
            Row(tuple(row[column] for column in task.hub_columns), row["label"], f"{name} {theirs}, row {number}")
            for number, row in enumerate(rows)
        ]
    return found
