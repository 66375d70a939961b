import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from lookupffn.models.hub import RELAY, model_card
from tests.models.test_modeling import model

ROOT = Path(__file__).parents[2]
PRETRAINED = {
    "ffn": "lookup", "ffn_options": {"num_tables": 8, "table_size": 256}, "model": "tiny", "data": "docstrings",
    "seed": 3, "steps": 1234, "tokens": 5_054_464, "validation_loss": 3.5, "validation_perplexity": 33.1,
    "unigram_perplexity": 952.9, "model_flops_per_token": 7_457_792.0, "ffn_flops_per_token": 100_000.0,
    "gemm_ffn_flops_per_token": 600_000.0, "parameters": 5_463_552, "parameters_touched": 1e5, "training_flops": 1e14,
    "training_s": 600.0, "device_name": "AMD EPYC", "data_fingerprint": "a3a6", "tokenizer_fingerprint": "7556",
}  # fmt: skip


def test_the_card_says_what_was_trained_on_what_at_what_cost_and_how_to_load_it():
    card = ModelCard(model_card(PRETRAINED))
    assert (card.data.license, card.data.library_name, card.data.pipeline_tag) == (
        "apache-2.0", "transformers", "fill-mask",
    )  # fmt: skip
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results == {"loss": 3.5, "perplexity": 33.1}
    for words in (
        "`lookup` (num_tables 8, table_size 256)", "on `docstrings`", "1,234 steps (5,054,464 tokens), seed 3",
        "| validation perplexity | 33.1 |", "| FLOPs a token, whole model | 7,457,792 |", "10 minutes on AMD EPYC",
        "fingerprint `a3a6`", "import lookupffn", "AutoModelForMaskedLM.from_pretrained", "Apache License 2.0",
    ):  # fmt: skip
        assert words in card.text, words


def test_the_card_of_a_classifier():
    card = ModelCard(model_card(PRETRAINED | {"task": "sst2", "validation_accuracy": 0.81, "validation_loss": 0.4}))
    assert card.data.pipeline_tag == "text-classification"
    assert {r.metric_type: r.metric_value for r in card.data.eval_results}["accuracy"] == 0.81
    assert "fine-tuned on `sst2`" in card.text and "AutoModelForSequenceClassification" in card.text


def test_a_diverged_run_has_a_card_without_the_figures_that_json_does_not_have():
    card = ModelCard(model_card(PRETRAINED | {"validation_perplexity": float("inf"), "validation_loss": 800.0}))
    assert [result.metric_type for result in card.data.eval_results] == ["loss"]
    assert "validation perplexity" not in card.text


LOAD = """
from transformers import AutoModelForMaskedLM
model = AutoModelForMaskedLM.from_pretrained({folder!r}, trust_remote_code=True)
print(type(model).__module__, sum(p.double().sum().item() for p in model.parameters()))
"""


@pytest.fixture
def folder(tmp_path):
    saved = model({"name": "lookup", "num_tables": 4})
    saved.save_pretrained(tmp_path / "model")
    return saved, tmp_path / "model"


def load(folder, tmp_path, **more):
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", **more}
    command = [sys.executable, "-c", LOAD.format(folder=str(folder))]
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300)


@pytest.mark.slow
def test_without_an_import_transformers_finds_the_package_when_it_may(folder, tmp_path):
    saved, path = folder
    done = load(path, tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    module, total = done.stdout.split()[-2:]
    assert module == "lookupffn.models.heads"
    assert float(total) == pytest.approx(sum(p.double().sum().item() for p in saved.parameters()))


@pytest.mark.slow
def test_without_the_package_one_line_says_what_to_install(folder, tmp_path):
    # a package of the same name that has nothing, as if it were not installed
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "lookupffn.py").write_text("raise ImportError('not installed')")
    done = load(folder[1], tmp_path, PYTHONPATH=str(tmp_path / "empty"))
    assert done.returncode != 0
    assert done.stderr.strip().splitlines()[-1] == (
        "ImportError: this model needs the package lookupffn: clone the repository of lookupffn and run "
        "`pip install .` in it, then load it again"
    )


def test_a_saved_folder_holds_no_copy_of_the_classes(folder):
    _, path = folder
    assert [file.name for file in path.glob("*.py")] == [f"{RELAY}.py"]
    config = json.loads((path / "config.json").read_text())
    assert config["auto_map"]["AutoModelForMaskedLM"] == f"{RELAY}.LookupRobertaForMaskedLM"
