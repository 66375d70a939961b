"""A corpus and a model small enough to train in a second, and ways to run them."""

import functools
import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import hydra
import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file

from lookupffn.cli.choices import CONFIG_DIR
from lookupffn.objectives import MaskedLanguageModelling
from lookupffn.training import train

ROOT = CONFIG_DIR.parent
MODEL = (
    "model.num_hidden_layers=1",
    "model.hidden_size=32",
    "model.num_attention_heads=2",
    "model.intermediate_size=64",
    "model.sequence_length=32",
)
LOOKUP = ("ffn=lookup", "ffn.num_tables=4", "ffn.table_size=8", "ffn.block_size=8")
TRAINING = (
    "training.batch_size=8",
    "training.max_steps=6",
    "training.log_every=2",
    "training.validate_every=3",
    "training.checkpoint_every=3",
    "evaluation.max_tokens=1024",
    "tracker=none",
)


@dataclass(frozen=True)
class Workspace:
    """Text, and a cache that all tests share.

    Attributes:
        root: folder of both.
    """

    root: Path

    @property
    def data(self) -> list[str]:
        """Overrides that choose the text, its tokenizer and the cache."""
        return [
            "data=text",
            f"data.train_files={self.root}/train.txt",
            f"data.validation_files={self.root}/validation.txt",
            "tokenizer.vocab_size=300",
            f"cache_dir={self.root}/cache",
        ]

    def overrides(self, *more: str) -> list[str]:
        """A run of a second; ``more`` wins."""
        return [
            *MODEL,
            *(() if any(text.startswith("ffn=") for text in more) else LOOKUP),
            *TRAINING,
            *self.data,
            *more,
        ]

    def train(self, *more: str, sweep_member: bool = False) -> dict | None:
        """Trains in this process."""
        return train(compose("train", *self.overrides(*more)), MaskedLanguageModelling, sweep_member=sweep_member)


def compose(name: str, *overrides: str) -> DictConfig:
    """A config of the project's."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return hydra.compose(name, list(overrides))


def section(name: str) -> dict:
    """One section of the default training config, as plain values."""
    return OmegaConf.to_container(compose("train"), resolve=True)[name]


def workspace(base: Path) -> Workspace:
    """The session's workspace.

    Args:
        base: tmp_path_factory.getbasetemp().
    """
    return _workspace(base)


@functools.cache
def _workspace(base: Path) -> Workspace:
    root = base / "tiny"
    root.mkdir()
    generator = random.Random(0)
    words = ["".join(generator.choices("abcdefghijklmnop", k=generator.randint(2, 7))) for _ in range(200)]
    weights = [1 / (rank + 1) for rank in range(len(words))]
    for name, documents in (("train", 60), ("validation", 30)):
        texts = [" ".join(generator.choices(words, weights, k=200)) for _ in range(documents)]
        (root / f"{name}.txt").write_text("\n\n".join(texts), encoding="utf-8")
    return Workspace(root)


def stranger(tokenizer: Path, folder: Path) -> None:
    """Saves a tokenizer of the same size in which two words have each other's ids."""
    shutil.copytree(tokenizer, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    document = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = document["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (folder / "tokenizer.json").write_text(json.dumps(document))


def run(*command: str, cwd: Path, check: bool = True, **environment: str) -> subprocess.CompletedProcess:
    """A subprocess of this Python on one thread, away from the network."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Of a finished run."""
    return load_file(folder / "model" / "model.safetensors")


def metrics(folder: Path, *, timeless: bool = True) -> list[dict]:
    """metrics.jsonl, without what no two runs have in common."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not (timeless and k == "tokens_per_s")} for line in lines]
