"""The loop, in this process: budgets, exact resume, what a run leaves, and how it stops."""

import json
import logging
import math
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    RobertaPreLayerNormConfig,
    RobertaPreLayerNormForMaskedLM,
)

import lookupffn.objectives.mlm as mlm
import lookupffn.training.trainer as loop
from lookupffn.errors import UserError
from lookupffn.models import LookupRobertaForMaskedLM
from lookupffn.models.loading import load_model
from lookupffn.objectives import MaskedLanguageModelling
from lookupffn.runs.checkpoint import list_checkpoints
from lookupffn.training import train
from lookupffn.training.step import Updater
from tests.training.tiny import Workspace, compose, metrics, stranger, weights

# random numbers in the model, and gradients in several parts: what an inexact resume would get wrong
HARD = ("model.hidden_dropout_prob=0.1", "model.attention_probs_dropout_prob=0.1", "training.max_steps=10",
        "training.log_every=4", "training.validate_every=5", "training.gradient_accumulation_steps=2")  # fmt: skip


KEYS = """ffn ffn_options seed steps tokens validation_loss validation_perplexity unigram_perplexity ffn_flops_per_token
    model_flops_per_token training_flops plateau_exit_step second_fall_step ffn_parameters parameters wall_clock_s
    tokens_per_s device
    data_fingerprint tokenizer_fingerprint git_commit versions ffn_flops_per_token_per_layer gemm_ffn_flops_per_token
    masked_validation_tokens budget environment distributed
    ffn_parameter_roles device_name threads ffn_parameters_touched parameters_touched"""


class Killed(BaseException):
    """Stands for kill -9: nothing in the loop may catch it."""


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    original = Updater.update

    def update(*args, **kwargs):
        if kwargs["step"] == step:
            raise Killed
        return original(*args, **kwargs)

    monkeypatch.setattr(Updater, "update", update)


def killed_run(tiny: Workspace, monkeypatch: pytest.MonkeyPatch, step: int, *overrides: str) -> None:
    """A run that dies in a step, as by kill -9: nothing more is written."""
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, step)
        tiny.train(*overrides)


def test_what_a_run_leaves(tiny: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture):
    folder = tmp_path / "run"
    summary = tiny.train(f"output_dir={folder}")
    assert sorted(p.name for p in folder.iterdir()) == [
        "checkpoints", "config.yaml", "metrics.jsonl", "model", "summary.json", "token_counts.json",
    ]  # fmt: skip
    assert json.loads((folder / "summary.json").read_text()) == summary
    for key in KEYS.split():
        assert key in summary, key
    assert (summary["steps"], summary["tokens"]) == (6, 6 * 8 * 32)
    assert summary["training_flops"] == 3 * summary["model_flops_per_token"] * summary["tokens"]
    assert summary["masked_validation_tokens"] == 1024 // 32 * 5
    assert summary["validation_perplexity"] == pytest.approx(math.exp(summary["validation_loss"]))
    assert 1 < summary["unigram_perplexity"] < 300

    lines = metrics(folder, timeless=False)
    assert [line["step"] for line in lines] == [2, 3, 4, 6]
    assert [line["step"] for line in lines if "validation_loss" in line] == [3, 6]
    for line in lines:
        assert {"tokens", "training_flops", "loss", "learning_rate", "grad_norm", "tokens_per_s"} <= set(line)
        if "validation_loss" in line:
            assert 0 < line["ffn_rows_addressed"] <= 1 and line["ffn_code_entropy_bits"] > 0
    assert summary["statistics"]["rows_addressed"] == lines[-1]["ffn_rows_addressed"]
    assert [p.name for p in list_checkpoints(folder / "checkpoints")] == ["step-00000003", "step-00000006"]
    model = AutoModelForMaskedLM.from_pretrained(folder / "model")
    assert isinstance(model, LookupRobertaForMaskedLM)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    assert len(tokenizer) == model.config.vocab_size
    # a text that is cut fits the model
    assert tokenizer.model_max_length == model.config.max_positions
    model(**tokenizer("word " * 500, truncation=True, return_tensors="pt"))
    card = ModelCard.load(folder / "model" / "README.md")
    assert card.data.eval_results[0].metric_value == summary["validation_perplexity"]
    assert set(summary["model_sha256"]) == {path.name for path in (folder / "model").iterdir()}
    output = capsys.readouterr().out
    assert "validation perplexity" in output and "times fewer than GEMM" in output and str(folder) in output

    with pytest.raises(UserError, match="finished run"):
        tiny.train(f"output_dir={folder}")


@pytest.mark.slow
def test_resumed_run_equals_the_uninterrupted_one(
    tiny: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    expected = tiny.train(*HARD, f"output_dir={whole}")
    # between checkpoints; right after one that falls between two logged steps; before the first
    for step in (2, 7, 8):
        killed_run(tiny, monkeypatch, step, *HARD, f"output_dir={broken}")
    with caplog.at_level(logging.INFO):
        summary = tiny.train(*HARD, f"output_dir={broken}")
    assert "resuming from step 6" in caplog.text
    assert metrics(broken) == metrics(whole)
    assert summary["validation_loss"] == expected["validation_loss"]
    for name, weight in weights(whole).items():
        assert torch.equal(weight, weights(broken)[name]), name


def test_a_budget_of_flops_holds_where_the_cost_is_measured(
    tiny: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # slide's cost follows from the neurons that were retrieved so far, which a resumed run counts from the start
    slide = ("ffn=slide", "ffn.bits=3", "ffn.num_tables=4", "training.max_flops=1e8", "training.log_every=1")
    tiny.train(*slide, f"output_dir={tmp_path}/whole")
    killed_run(tiny, monkeypatch, 4, *slide, f"output_dir={tmp_path}/broken")
    tiny.train(*slide, f"output_dir={tmp_path}/broken")
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "whole")


def test_damaged_newest_checkpoint_is_passed_over(
    tiny: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    tiny.train(*HARD, f"output_dir={whole}")
    killed_run(tiny, monkeypatch, 8, *HARD, f"output_dir={broken}")
    checkpoints = list_checkpoints(broken / "checkpoints")
    weights_file = checkpoints[-1] / "model.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:-1] + b"\x00")
    with caplog.at_level(logging.INFO):
        tiny.train(*HARD, f"output_dir={broken}")
    assert "step-00000006: model.safetensors is not what was written" in caplog.text
    assert "resuming from step 5" in caplog.text  # the best so far
    assert metrics(broken) == metrics(whole)


def test_no_whole_checkpoint_is_an_error(tiny: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "run"
    killed_run(tiny, monkeypatch, 4, f"output_dir={folder}")
    (list_checkpoints(folder / "checkpoints")[0] / "checkpoint.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="no checkpoint is whole; start again with overwrite=true"):
        tiny.train(f"output_dir={folder}")
    assert tiny.train(f"output_dir={folder}", "overwrite=true")["steps"] == 6


def test_longer_budget_goes_on_and_other_settings_are_refused(
    tiny: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "run"
    killed_run(tiny, monkeypatch, 4, f"output_dir={folder}")
    with pytest.raises(UserError, match=r"optimizer\.lr"):
        tiny.train(f"output_dir={folder}", "optimizer.lr=1")
    summary = tiny.train(f"output_dir={folder}", "training.max_steps=8")
    assert summary["steps"] == 8 and summary["budget"] == {"unit": "steps", "amount": 8}
    assert [(budget["amount"], budget["from_step"]) for budget in summary["budgets"]] == [(6, 0), (8, 3)]


@pytest.mark.parametrize("smaller", ["training.max_steps=2", "training.max_tokens=512", "training.max_minutes=1e-9"])
def test_a_budget_that_the_run_has_exceeded_is_refused(
    smaller: str, tiny: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "run"
    killed_run(tiny, monkeypatch, 4, f"output_dir={folder}")
    before = (folder / "config.yaml").read_bytes()
    with pytest.raises(UserError, match=r"the run has trained for more than training.max_\w+=\S+ already \(3 steps"):
        tiny.train(f"output_dir={folder}", smaller)
    assert (folder / "config.yaml").read_bytes() == before and not (folder / "summary.json").exists()
    assert "budgets" not in tiny.train(f"output_dir={folder}")


def test_changed_corpus_is_not_mixed_into_a_run(tiny: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    validation = tmp_path / "validation.txt"
    validation.write_text((tiny.root / "validation.txt").read_text())
    more = (f"output_dir={tmp_path}/run", f"data.validation_files={validation}")
    killed_run(tiny, monkeypatch, 4, *more)
    validation.write_text(validation.read_text() + "\n\nand this")
    with pytest.raises(UserError, match="the data is not what this run started with"):
        tiny.train(*more)


def test_validations_on_the_way_may_score_less(tiny: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    scored = []
    original = mlm.evaluate_mlm
    monkeypatch.setattr(
        mlm,
        "evaluate_mlm",
        lambda *args, **kwargs: (scored.append(kwargs["max_tokens"]), original(*args, **kwargs))[1],
    )
    summary = tiny.train(f"output_dir={tmp_path}/run", "training.validate_tokens=128", "training.validate_every=2")
    assert scored == [128, 128, 128, 1024]
    assert summary["masked_validation_tokens"] == 1024 // 32 * 5
    # the last is compared with the others by what all were scored on
    on_the_way = {line["step"]: line["validation_loss"] for line in metrics(tmp_path / "run") if line["step"] in (2, 4)}
    best = summary["best"]
    assert best["validation_loss"] == min(*on_the_way.values(), best["validation_loss"])
    assert best["step"] == 6 or best["validation_loss"] == on_the_way[best["step"]]
    assert summary["validation_s"] > 0 and summary["checkpoint_s"] > 0


@pytest.mark.parametrize(
    ("budget", "steps", "unit"),
    [
        ("training.max_tokens=1000", 4, "tokens"),
        ("training.max_flops=1e8", None, "flops"),
        ("training.max_minutes=0.002", None, "minutes"),
    ],
)
def test_budgets(budget: str, steps: int | None, unit: str, tiny: Workspace, tmp_path: Path):
    summary = tiny.train(budget, f"output_dir={tmp_path}/run", "training.validate_every=1000")
    assert summary["budget"]["unit"] == unit
    if unit == "flops":
        per_step = summary["training_flops"] / summary["steps"]
        steps = math.ceil(1e8 / per_step)
    if unit == "minutes":
        assert summary["training_s"] >= 0.12
    else:
        assert summary["steps"] == steps
    assert metrics(tmp_path / "run")[-1]["step"] == summary["steps"]


def test_a_budget_of_minutes_drives_the_learning_rate(tiny: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    done = []

    class StepsAsSeconds(loop.Clock):
        def seconds(self) -> float:
            return float(len(done))

    original = Updater.update
    monkeypatch.setattr(loop, "Clock", StepsAsSeconds)
    monkeypatch.setattr(Updater, "update", lambda *args, **kwargs: (done.append(1), original(*args, **kwargs))[1])
    more = ("training.max_minutes=0.2", "training.log_every=1", "optimizer.lr=1", "optimizer.warmup_ratio=0.5")
    assert tiny.train(f"output_dir={tmp_path}/run", *more)["steps"] == 12
    rates = [line["learning_rate"] for line in metrics(tmp_path / "run")]
    rising, falling = [max(0.01, step / 6) for step in range(6)], [1 - step / 6 for step in range(6)]
    assert rates == pytest.approx([*rising, *falling])


def test_auxiliary_losses_are_trained_and_logged(tiny: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        LookupRobertaForMaskedLM, "auxiliary_losses", lambda self: {"norm": (self.lm_head.bias - 1).square().sum()}
    )
    tiny.train(f"output_dir={tmp_path}/run", "optimizer.lr=0.1")
    values = [line["auxiliary_norm"] for line in metrics(tmp_path / "run")]
    assert values[-1] < values[0]


def test_plain_options(tiny: Workspace, tmp_path: Path):
    """bf16, GEMM, a worker process, cosine, no clipping."""
    more = ("ffn=gemm", "training.precision=bf16", "training.num_workers=1", "optimizer.schedule=cosine")
    summary = tiny.train(*more, "optimizer.max_grad_norm=null", f"output_dir={tmp_path}/run")
    assert summary["precision"] == "bf16" and summary["ffn_flops_per_token"] == summary["gemm_ffn_flops_per_token"]
    assert all(weight.dtype == torch.float32 for weight in weights(tmp_path / "run").values())


@pytest.mark.slow
def test_init_from(tiny: Workspace, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    first = tmp_path / "first"
    tiny.train(f"output_dir={first}", "training.max_steps=3")
    with caplog.at_level(logging.WARNING):
        summary = tiny.train(
            "ffn=gemm", "model.hidden_size=64", f"init_from={first}", f"output_dir={tmp_path}/second",
            "training.max_steps=1", "optimizer.lr=1e-30", "optimizer.weight_decay=0",
        )  # fmt: skip
    assert "are those of the model" in caplog.text and "(ffn lookup, not gemm; hidden_size 32, not 64)" in caplog.text
    assert summary["ffn"] == "lookup"
    assert summary["tokenizer_fingerprint"] == json.loads((first / "summary.json").read_text())["tokenizer_fingerprint"]
    for name, weight in weights(first).items():
        assert torch.equal(weight, weights(tmp_path / "second")[name]), name
    with pytest.raises(UserError, match="do not belong together"):
        other = tmp_path / "tokenizer"
        tokenizer = AutoTokenizer.from_pretrained(first / "model")
        tokenizer.add_tokens(["extra"])
        tokenizer.save_pretrained(other)
        overrides = [o for o in tiny.overrides() if not o.startswith("tokenizer.")]
        more = ("tokenizer=pretrained", f"tokenizer.path={other}", f"init_from={first}", f"output_dir={tmp_path}/third")
        train(compose("train", *overrides, *more), MaskedLanguageModelling)


def test_init_from_refuses_another_tokenizer_of_the_same_size(tiny: Workspace, tmp_path: Path):
    first, other = tmp_path / "first", tmp_path / "tokenizer"
    tiny.train(f"output_dir={first}", "training.max_steps=1")
    stranger(first / "model", other)
    overrides = [o for o in tiny.overrides() if not o.startswith("tokenizer.")]
    alone = shutil.copytree(first / "model", tmp_path / "alone")  # no run, so no record
    for source in (first, alone):
        more = ("tokenizer=pretrained", f"tokenizer.path={other}", f"init_from={source}", f"output_dir={tmp_path}/two")
        with pytest.raises(UserError, match=r"not the one that the model in .* was trained with") as caught:
            train(compose("train", *overrides, *more), MaskedLanguageModelling)
        assert "\n" not in str(caught.value) and not (tmp_path / "two").exists()


def test_an_output_dir_may_be_a_number(tiny: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    tiny.train("output_dir=2024", "training.max_steps=1")
    assert (tmp_path / "2024" / "summary.json").exists()


def test_init_from_a_stock_model(tiny: Workspace, tmp_path: Path):
    tiny.train(f"output_dir={tmp_path}/first", "training.max_steps=1")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "first" / "model")
    stock = RobertaPreLayerNormForMaskedLM(
        RobertaPreLayerNormConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=40,
        )
    ).eval()
    stock.save_pretrained(tmp_path / "stock")
    tokenizer.save_pretrained(tmp_path / "stock")
    tokens = torch.randint(5, 300, (2, 32))
    assert torch.equal(load_model(tmp_path / "stock").eval()(tokens).logits, stock(tokens).logits)
    summary = tiny.train(f"init_from={tmp_path}/stock", f"output_dir={tmp_path}/second", "training.max_steps=1")
    assert summary["ffn"] == "gemm" and summary["ffn_options"]["intermediate_size"] == 24
