"""Readers of files that may come from anyone: 3,000 damaged inputs, each answered with one line or read as it stands.

Half of the mutations are of bytes (a flip, a cut, a doubled or deleted piece), half of structure (a value of a JSON
document replaced by one that is odd there), for a parser stops the former before they reach what uses the values.
"""

import copy
import gzip
import json
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from omegaconf import DictConfig, OmegaConf

from lookupffn.config.run import resolve
from lookupffn.data import cache
from lookupffn.data.corpus.readers import read_documents
from lookupffn.data.packing import PackedTokens
from lookupffn.errors import UserError
from lookupffn.models.loading import load_model, load_model_config, load_tokenizer
from lookupffn.objectives import MaskedLanguageModelling
from lookupffn.report.runs import read_run
from lookupffn.runs.checkpoint import load_state, verify_checkpoint
from lookupffn.runs.model_source import find_model
from lookupffn.runs.records import read_config, read_metrics
from lookupffn.training.run import build_objective
from tests.training.tiny import compose, workspace

# no reader of a small file takes longer, on a machine that is busy with other things too
LONGEST_S = 60
ODD = (None, True, -1, 0, 3, 1e308, -0.5, float("nan"), 10**9, 2**70, "", "x", "\ud800", "../x", [], [1], {}, {"a": []},
       "1e3", [[[[]]]], "0" * 64)  # fmt: skip


def bitten(content: bytes, chance: random.Random) -> bytes:
    """Bytes with one to three wounds."""
    found = bytearray(content)
    for _ in range(chance.randint(1, 3)):
        at, length = chance.randrange(len(found) + 1), chance.randint(1, 40)
        match chance.randrange(6):
            case 0:
                found[at : at + 1] = bytes([chance.randrange(256)])
            case 1 if found:
                found[min(at, len(found) - 1)] ^= 1 << chance.randrange(8)
            case 2:
                del found[at:]
            case 3:
                del found[at : at + length]
            case 4:
                found[at:at] = found[at : at + length]
            case _:
                found[at:at] = chance.randbytes(length)
    return bytes(found)


def bent(document: dict, chance: random.Random) -> dict:
    """A JSON document with one to three values that are odd there, gone, or under another name."""
    found = copy.deepcopy(document)
    for _ in range(chance.randint(1, 3)):
        node: dict | list = found
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = chance.choice(keys)
            if isinstance(node[key], dict | list) and node[key] and chance.random() < 0.7:
                node = node[key]
                continue
            match chance.randrange(4):
                case 0:
                    del node[key]
                case 1 if isinstance(node, dict):
                    node[f"{key}x"] = node.pop(key)
                case _:
                    node[key] = copy.deepcopy(chance.choice(ODD))
            break
    return found


def as_bytes(document: dict) -> bytes:
    return json.dumps(document).encode("utf-8")


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    def late(signum: int, frame: object) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def survive(count: int, name: str, damage: Callable[[random.Random], object], read: Callable[[], object]) -> int:
    """Reads what ``damage`` has left ``count`` times; how often that was refused."""
    refused = 0
    for number in range(count):
        damage(random.Random(f"{name} {number}"))
        try:
            with at_most(LONGEST_S):
                read()
        except UserError as error:
            refused += 1
            assert str(error) and "\n" not in str(error), (name, number)
        except BaseException as error:
            raise AssertionError(f"{name} {number}: {type(error).__name__}: {error}") from error
    return refused


def bites(path: Path) -> Callable[[random.Random], object]:
    """Damage to a file's bytes."""
    content = path.read_bytes()
    return lambda chance: path.write_bytes(bitten(content, chance))


def bends(path: Path) -> Callable[[random.Random], object]:
    """Damage to a JSON file, of its bytes or its structure."""
    content = path.read_bytes()
    document = json.loads(content)
    return lambda chance: path.write_bytes(
        bitten(content, chance) if chance.random() < 0.3 else as_bytes(bent(document, chance))
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "run"
    workspace(tmp_path_factory.getbasetemp()).train(f"output_dir={folder}")
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def checked(config: DictConfig) -> None:
    build_objective(resolve(config, MaskedLanguageModelling.sections), MaskedLanguageModelling)


@pytest.mark.slow
def test_values_of_a_config():
    whole = OmegaConf.to_container(compose("train"), resolve=True)
    found: list[dict] = []

    def damage(chance: random.Random) -> None:
        found[:] = [bent(whole, chance)]

    assert survive(500, "config", damage, lambda: checked(OmegaConf.create(found[0]))) > 200


def test_config_yaml(run: Path):
    assert survive(150, "config.yaml", bites(run / "config.yaml"), lambda: read_config(run)) > 20


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".jsonl.gz", ".parquet"])
def test_text(suffix: str, tmp_path: Path):
    path = tmp_path / f"text{suffix}"
    texts = [f"document {number} says é and \\u00fc" for number in range(40)]
    lines = "".join(json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(texts)).encode()
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": texts, "id": list(range(40))}), path)
    else:
        path.write_bytes(
            {".txt": "\n\n".join(texts).encode(), ".jsonl": lines, ".jsonl.gz": gzip.compress(lines)}[suffix]
        )
    refused = survive(200, suffix, bites(path), lambda: list(read_documents(path, "text")))
    assert refused == 0 if suffix == ".txt" else refused > 40


def test_cache_entries(tmp_path: Path):
    entry = tmp_path / "entry"
    index = {"what": "train split", "dtype": "uint16", "vocab_size": 300, "documents": 2, "tokens": 64, "characters": 9}

    def build(folder: Path) -> None:
        (folder / "tokens.bin").write_bytes(bytes(128))
        (folder / "index.json").write_text(json.dumps(index))

    cache.ensure_entry(entry, build, what="a thing")
    before = listing(tmp_path)
    found = []
    survive(150, "manifest", bends(entry / cache.MANIFEST), lambda: found.append(cache.damage(entry)))
    assert sum(problem is not None for problem in found) > 100
    assert survive(150, "index", bends(entry / "index.json"), lambda: PackedTokens(entry, 16)) > 50
    assert listing(tmp_path) == before


def test_summaries(run: Path):
    damage = bends(run / "summary.json")
    assert survive(150, "summary, to score", damage, lambda: find_model(run)) > 20
    assert survive(150, "summary, to compare", damage, lambda: read_run(run)) > 20


def test_metrics(run: Path):
    path = run / "metrics.jsonl"
    survive(100, "metrics", bites(path), lambda: read_metrics(path.parent, 4))
    path.write_text("".join(json.dumps({"step": odd}) + "\n" for odd in ODD))
    read_metrics(path.parent, 4)


def test_checkpoints(run: Path):
    checkpoint = sorted((run / "checkpoints").iterdir())[-1]
    before = listing(run)
    # whatever is changed in it: the numbers that a run resumes from matter as much as its weights
    document = json.loads((checkpoint / "checkpoint.json").read_text())

    def damage(chance: random.Random) -> None:
        changed = bent(document, chance)
        while changed == document:
            changed = bent(document, chance)
        (checkpoint / "checkpoint.json").write_bytes(as_bytes(changed))

    assert survive(200, "checkpoint.json", damage, lambda: verify_checkpoint(checkpoint)) == 200
    survive(100, "checkpoint.json, bytes", bites(checkpoint / "checkpoint.json"), lambda: verify_checkpoint(checkpoint))
    assert survive(150, "state", bites(checkpoint / "training_state.pt"), lambda: load_state(checkpoint)) > 100
    assert listing(run) == before


@pytest.mark.slow
def test_models(run: Path):
    model = run / "model"
    original = (model / "config.json").read_bytes()
    assert survive(250, "config.json", bends(model / "config.json"), lambda: load_model_config(model)) > 80
    assert survive(60, "config.json, model", bends_of(model / "config.json", original), lambda: load_model(model)) > 30
    (model / "config.json").write_bytes(original)
    weights = (model / "model.safetensors").read_bytes()
    size = 8 + int.from_bytes(weights[:8], "little")

    def header(chance: random.Random) -> None:  # in the weights any bytes are numbers
        (model / "model.safetensors").write_bytes(bitten(weights[:size], chance) + weights[size:])

    assert survive(80, "safetensors", header, lambda: load_model(model)) > 60
    (model / "model.safetensors").write_bytes(weights)
    assert survive(60, "tokenizer.json", bends(model / "tokenizer.json"), lambda: load_tokenizer(model)) > 10


def bends_of(path: Path, content: bytes) -> Callable[[random.Random], object]:
    path.write_bytes(content)
    return bends(path)
