"""Small corpora in temporary folders."""

import json
import random

import pytest

_TEXT = "the model reads a long sentence about rivers mountains birds and old stone houses before winter comes again"
WORDS = _TEXT.split()


def sentences(count: int, seed: int = 0) -> list[str]:
    """Different documents of a few sentences each."""
    generator = random.Random(seed)
    return [f"Text {seed}-{i}: " + " ".join(generator.choices(WORDS, k=30)) + "." for i in range(count)]


def write_jsonl(path, documents, field="text"):
    path.write_text("".join(json.dumps({field: document}) + "\n" for document in documents), encoding="utf-8")
    return str(path)


@pytest.fixture
def text_data(tmp_path):
    """A data=text configuration over two small files."""
    folder = tmp_path / "text"
    folder.mkdir()
    return {
        "name": "text",
        "sequence_length": 32,
        "mask_rate": 0.15,
        "train_files": write_jsonl(folder / "train.jsonl", sentences(200)),
        "validation_files": write_jsonl(folder / "validation.jsonl", sentences(40, seed=1)),
    }


@pytest.fixture
def trained():
    return {"name": "trained", "vocab_size": 400}
