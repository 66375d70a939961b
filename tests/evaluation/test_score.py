"""Finding, loading and scoring a model that exists."""

import json
import logging
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from lookupffn.errors import UserError
from lookupffn.evaluation.score import score
from lookupffn.models.loading import load_model
from lookupffn.objectives import MaskedLanguageModelling
from lookupffn.runs.model_source import find_model
from lookupffn.training import train
from tests.training.tiny import Workspace, compose, stranger


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.training.tiny import workspace

    folder = tmp_path_factory.mktemp("scored") / "run"
    workspace(tmp_path_factory.getbasetemp()).train(f"output_dir={folder}")
    return folder


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(run, tmp_path / "copy")


def evaluate(tiny: Workspace, *overrides: str) -> dict:
    return score(compose("evaluate", f"cache_dir={tiny.root}/cache", *overrides))


def test_finished_run_scores_as_its_summary_says(tiny: Workspace, copy: Path, capsys: pytest.CaptureFixture):
    summary = json.loads((copy / "summary.json").read_text())
    for batch_size in (1, 7, 64):
        result = evaluate(tiny, f"checkpoint={copy}", f"evaluation.batch_size={batch_size}")
        assert result["validation_loss"] == pytest.approx(summary["validation_loss"], rel=1e-6)
    same = (
        "unigram_perplexity masked_validation_tokens ffn ffn_options parameters model_flops_per_token data_fingerprint"
    )
    assert all(result[key] == summary[key] for key in same.split())
    assert json.loads((copy / "evaluation.json").read_text()) == result
    assert "validation perplexity" in capsys.readouterr().out


def test_running_run_and_its_parts(tiny: Workspace, copy: Path, tmp_path: Path):
    checkpoints = sorted((copy / "checkpoints").iterdir())
    final = evaluate(tiny, f"checkpoint={copy}/model", f"output={tmp_path}/new/result.json")
    assert json.loads((tmp_path / "new" / "result.json").read_text()) == final
    (copy / "summary.json").unlink()
    newest = evaluate(tiny, f"checkpoint={copy}")
    assert newest["checkpoint"] == str(checkpoints[-1]) and newest["step"] == 6
    assert newest["validation_loss"] == final["validation_loss"]
    earlier = evaluate(tiny, f"checkpoint={checkpoints[0]}")
    assert earlier["step"] == 3 and earlier["validation_loss"] != final["validation_loss"]


def test_a_run_whose_tokenizer_has_gaps_in_its_ids(tiny: Workspace, copy: Path, tmp_path: Path):
    document = json.loads((copy / "model" / "tokenizer.json").read_text())
    vocabulary = document["model"]["vocab"]
    vocabulary.update({token: number + 100 for token, number in vocabulary.items() if number > 280})
    (copy / "model" / "tokenizer.json").write_text(json.dumps(document))
    overrides = [text for text in tiny.overrides(f"output_dir={tmp_path}/gaps") if not text.startswith("tokenizer.")]
    config = compose("train", *overrides, "tokenizer=pretrained", f"tokenizer.path={copy}/model")
    summary = train(config, MaskedLanguageModelling)
    result = evaluate(tiny, f"checkpoint={tmp_path}/gaps")
    assert result["validation_loss"] == pytest.approx(summary["validation_loss"], rel=1e-6)
    assert result["unigram_perplexity"] == summary["unigram_perplexity"]


@pytest.mark.slow
def test_other_files_and_other_lengths(
    tiny: Workspace, run: Path, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    text = tmp_path / "other.txt"
    text.write_text("abc dea bcd " * 2000)
    model = shutil.copytree(run / "model", tmp_path / "model")  # belongs to no run
    with pytest.raises(UserError, match="belongs to no run, so say what to score it on: data="):
        evaluate(tiny, f"checkpoint={model}")
    result = evaluate(
        tiny, f"checkpoint={model}", "data=text", f"data.validation_files={text}", "model.sequence_length=16"
    )
    assert (result["sequence_length"], result["unigram_of"]) == (16, "the scored text")
    assert not result["sequence_length_assumed"] and "assumed" not in capsys.readouterr().out
    result = evaluate(tiny, f"checkpoint={model}", "data=text", f"data.validation_files={text}")
    assert (result["sequence_length"], result["sequence_length_assumed"]) == (128, True)
    assert "128 (assumed" in capsys.readouterr().out
    result = evaluate(tiny, f"checkpoint={copy}", "data=text", f"data.validation_files={text}")
    assert (result["sequence_length"], result["unigram_of"]) == (32, "the training text")
    # all of it, though the run scored 1,024 tokens of its own text
    assert result["validation_tokens"] == result["split_tokens"] > 1024
    part = evaluate(
        tiny, f"checkpoint={copy}", "data=text", f"data.validation_files={text}", "evaluation.max_tokens=320"
    )
    assert (part["validation_tokens"], part["split_tokens"]) == (320, result["split_tokens"])
    assert part["unigram_perplexity"] == result["unigram_perplexity"] > result["validation_perplexity"] / 10
    own = evaluate(tiny, f"checkpoint={copy}")
    assert own["validation_tokens"] == 1024 < own["split_tokens"]
    (copy / "token_counts.json").write_text('{"counts": [1, 2]}')
    with pytest.raises(UserError, match="does not hold the counts of 300 tokens"):
        evaluate(tiny, f"checkpoint={copy}")
    (copy / "token_counts.json").unlink()  # as a run of an earlier version
    assert evaluate(tiny, f"checkpoint={copy}")["unigram_of"] == "the scored text"
    with pytest.raises(UserError, match="longer than the model's positions"):
        evaluate(tiny, f"checkpoint={copy}", "model.sequence_length=1024")


def test_changed_text_is_noted(tiny: Workspace, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    text = tmp_path / "validation.txt"
    text.write_text((tiny.root / "validation.txt").read_text())
    tiny.train(f"data.validation_files={text}", f"output_dir={tmp_path}/run", "training.max_steps=1")
    text.write_text(text.read_text()[: len(text.read_text()) // 2])
    with caplog.at_level(logging.WARNING):
        result = evaluate(tiny, f"checkpoint={tmp_path}/run")
    assert "not what the run was scored on" in caplog.text and result["unigram_of"] == "the training text"


def test_nothing_to_score(tiny: Workspace, tmp_path: Path):
    with pytest.raises(UserError, match="checkpoint=<run folder"):
        evaluate(tiny)
    with pytest.raises(UserError, match=r"no folder .*nowhere"):
        evaluate(tiny, f"checkpoint={tmp_path}/nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="neither a run folder"):
        evaluate(tiny, f"checkpoint={tmp_path}/empty")


def test_run_without_a_checkpoint_yet(copy: Path):
    (copy / "summary.json").unlink()
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(UserError, match="has no checkpoint yet"):
        find_model(copy)


def test_damaged_model_of_a_finished_run(tiny: Workspace, copy: Path):
    weights = copy / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    for path in (copy, copy / "model"):
        with pytest.raises(UserError, match=r"damaged model .*: model.safetensors is not what was written") as caught:
            evaluate(tiny, f"checkpoint={path}")
        assert "\n" not in str(caught.value)
    weights.unlink()
    with pytest.raises(UserError, match="a file of it cannot be read"):
        evaluate(tiny, f"checkpoint={copy}")


def forget_digests(run: Path) -> None:
    """As a run of an earlier version left it."""
    summary = json.loads((run / "summary.json").read_text())
    del summary["model_sha256"]
    (run / "summary.json").write_text(json.dumps(summary))


def test_tokenizer_of_the_same_size(tiny: Workspace, copy: Path, tmp_path: Path):
    forget_digests(copy)
    stranger(copy / "model", tmp_path / "tokenizer")
    shutil.copy(tmp_path / "tokenizer" / "tokenizer.json", copy / "model")
    with pytest.raises(UserError, match=r"not the one that the model in .* was trained with"):
        evaluate(tiny, f"checkpoint={copy}")


def test_non_finite_score_is_an_error(tiny: Workspace, copy: Path):
    forget_digests(copy)
    weights = load_file(copy / "model" / "model.safetensors")
    weights["lm_head.bias"][:] = float("nan")
    save_file(weights, copy / "model" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"validation loss nan; non-finite weights in 1 parameters: lm_head.bias"):
        evaluate(tiny, f"checkpoint={copy}")
    assert not (copy / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.mask_rate=abc", "data.mask_rate must be a number above 0 and below 1, not 'abc'"),
        ("data.validation_fraction=abc", "data.validation_fraction must be"),
        ("model.sequence_length=abc", "data.sequence_length must be"),
        ("output=1.5", "output must be a path"),
        ("cache_dir=nan", "cache_dir must be a path"),
    ],
)
def test_bad_values_are_one_line(override: str, message: str, tiny: Workspace, run: Path):
    with pytest.raises(UserError, match=message):
        evaluate(tiny, f"checkpoint={run}", "data=text", f"data.validation_files={tiny.root}/validation.txt", override)


def test_tokenizer_of_another_model(tiny: Workspace, copy: Path):
    forget_digests(copy)
    tokenizer = AutoTokenizer.from_pretrained(copy / "model")
    tokenizer.add_tokens(["more"])
    tokenizer.save_pretrained(copy / "model")
    with pytest.raises(UserError, match=r"the tokenizer has 301 entries and the model in .* 300"):
        evaluate(tiny, f"checkpoint={copy}")


def test_damaged_and_strange_models(copy: Path, tmp_path: Path):
    model = copy / "model"
    config, weights = json.loads((model / "config.json").read_text()), load_file(model / "model.safetensors")

    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message) as caught:
            load_model(model)
        assert "\n" not in str(caught.value)

    name = next(name for name, weight in weights.items() if ".ffn." in name and weight.ndim == 3)
    save_file({k: v for k, v in weights.items() if k != name}, model / "model.safetensors", {"format": "pt"})
    refused(f"1 weights are missing, the first {name.removeprefix('roberta_prelayernorm.')}")
    save_file(weights | {name: weights[name][:, :1].clone()}, model / "model.safetensors", {"format": "pt"})
    refused("in the weights and|cannot load the weights")
    (model / "model.safetensors").write_bytes(b"nothing")
    refused("cannot load the weights")
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"pickle")
    refused("cannot load the weights")
    for changes, message in (
        ({"model_type": "bert"}, "model_type is 'bert'"),
        ({"ffn": {"name": "lokup"}}, "unknown ffn 'lokup'"),
        ({"hidden_size": "big"}, "does not describe a model"),
        ({"ffn": [1]}, "does not describe a model"),
    ):
        (model / "config.json").write_text(json.dumps(config | changes))
        refused(message)
    (model / "config.json").write_text("[" * 100_000)
    refused("damaged file")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_hidden_layers", 10**6, "config.json says 1000000 layers, the weights 1"),
        ("hidden_size", 20_000, r"\[300, 32\] in the weights and \[300, 20000\] by config.json"),
        ("vocab_size", 10**9, r"\[1000000000, 32\] by config.json"),
    ],
)
def test_a_config_that_asks_for_more_than_there_is_costs_nothing(copy: Path, key: str, value: int, message: str):
    path = copy / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(UserError, match=message):
        load_model(copy / "model")
