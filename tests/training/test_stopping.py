"""What stops a run: bad input before anything is prepared, numbers that are none, a full disk."""

import math
from pathlib import Path

import pytest
import torch

import lookupffn.objectives.mlm as mlm
import lookupffn.training.step as step_module
import lookupffn.training.trainer as loop
from lookupffn.errors import UserError
from lookupffn.models import LookupRobertaForMaskedLM
from lookupffn.objectives.perplexity import EvaluationResult
from lookupffn.runs.checkpoint import list_checkpoints
from lookupffn.training.step import Updater
from tests.training.tiny import Workspace, metrics


def test_non_finite_validation_is_no_finished_run(tiny: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    results = iter([EvaluationResult(3.0, 20.0, 10, 1), EvaluationResult(math.nan, math.nan, 10, 1)])
    monkeypatch.setattr(mlm, "evaluate_mlm", lambda *args, **kwargs: next(results))
    folder = tmp_path / "run"
    expected = r"step 6: validation loss nan; .* finite. The run stops. The last checkpoint \(step-00000003\) is kept"
    with pytest.raises(step_module.NonFiniteError, match=expected):
        tiny.train(f"output_dir={folder}")
    assert not (folder / "summary.json").exists() and not (folder / "model").exists()


def test_non_finite_weights_are_never_a_checkpoint(tiny: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    original = Updater.update

    def poisoned(updater, *args, **kwargs):
        result = original(updater, *args, **kwargs)
        if kwargs["step"] == 2:
            with torch.no_grad():
                updater.model.lm_head.bias[0] = math.inf
        return result

    monkeypatch.setattr(Updater, "update", poisoned)
    folder = tmp_path / "run"
    expected = r"step 3: non-finite weights in 1 parameters: lm_head.bias.*No checkpoint had been written yet; try"
    with pytest.raises(step_module.NonFiniteError, match=expected):
        tiny.train(f"output_dir={folder}", "training.validate_every=100")
    assert list_checkpoints(folder / "checkpoints") == []


def test_overflowing_steps_are_counted_by_their_gradient(
    tiny: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    norms = iter([math.inf, 1.0, *[math.inf] * 3])

    def update(*args, **kwargs) -> step_module.StepResult:
        norm = next(norms)
        return step_module.StepResult(3.0, norm, math.isinf(norm), False, {})

    monkeypatch.setattr(Updater, "update", update)
    monkeypatch.setattr(loop, "MAX_SKIPPED_STEPS", 2)
    with pytest.raises(step_module.NonFiniteError, match="step 5: 3 steps in a row overflowed"):
        tiny.train(f"output_dir={tmp_path}/run", "training.log_every=1", "training.validate_every=100")
    lines = metrics(tmp_path / "run")
    assert [line["grad_norm"] for line in lines] == [None, 1.0, None, None]
    assert [line["skipped_steps"] for line in lines] == [1, 1, 2, 3]
    assert "Infinity" not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_full_disk_at_a_checkpoint(tiny: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    original, saves = torch.save, []

    def second_fails(*args) -> None:
        saves.append(args)
        if len(saves) == 2:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")
        original(*args)

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", second_fails)
        with pytest.raises(UserError, match=r"full or not writable. The last checkpoint \(step-00000003\) is kept"):
            tiny.train(f"output_dir={folder}")
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["step-00000003"]
    assert tiny.train(f"output_dir={folder}")["steps"] == 6


def test_non_finite_loss_stops_the_run(tiny: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    original = Updater.update

    def poisoned(updater, *args, **kwargs):
        if kwargs["step"] == 4:
            with torch.no_grad():
                updater.model.lm_head.dense.weight[0, 0] = math.nan
        return original(updater, *args, **kwargs)

    monkeypatch.setattr(Updater, "update", poisoned)
    folder = tmp_path / "run"
    with pytest.raises(UserError, match=r"step 5: loss nan.*non-finite weights in 1 parameters: lm_head.dense.weight"):
        tiny.train(f"output_dir={folder}")
    assert [p.name for p in list_checkpoints(folder / "checkpoints")] == ["step-00000003"]
    assert not (folder / "summary.json").exists() and not (folder / ".lock").exists()
    assert [line["step"] for line in metrics(folder)] == [2, 3, 4]


def test_non_finite_gradient_never_reaches_the_weights(
    tiny: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen = []

    def keep(model, *args):
        seen.extend(bool(torch.isfinite(p).all()) for p in model.parameters())
        return "stopped"

    monkeypatch.setattr(step_module, "describe_non_finite", keep)
    monkeypatch.setattr(
        LookupRobertaForMaskedLM, "auxiliary_losses", lambda self: {"bad": math.inf * self.lm_head.bias.sum()}
    )
    with pytest.raises(step_module.NonFiniteError, match="stopped"):
        tiny.train(f"output_dir={tmp_path}/run")
    assert seen and all(seen)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ffn.table_size=100", "power of two"),
        ("ffn.block_size=64", "block_size"),
        ("ffn.num_probes=9", "num_probes"),
        ("ffn.projection=sparse", "projection"),
        ("seed=-1", "seed must be"),
        ("training.precision=fp16", "needs a GPU"),
        ("model.sequence_length=1024", "max_positions=512"),
        ("model.num_attention_heads=3", "num_attention_heads"),
        ("data.train_files=nowhere/*.txt", "nowhere"),
        ("init_from=nowhere", "no folder nowhere"),
        ("~tracker", "no tracker"),
        ("output_dir=nan", "output_dir must be a path, not nan"),
        ("init_from=12", "no folder 12"),
        ("init_from=1.5", "init_from must be a path"),
        ("overwrite=maybe", "overwrite must be true or false"),
        (f"seed={2**64}", "seed must be"),
        ("data.mask_rate=abc", "data.mask_rate must be a number above 0 and below 1, not 'abc'"),
        ("data.mask_rate=0.001", "masks nothing"),
        ("data.validation_fraction=abc", "data.validation_fraction must be"),
        ("tokenizer.max_characters=abc", "tokenizer.max_characters must be"),
        ("tokenizer.vocab_size=abc", "tokenizer.vocab_size must be"),
        ("tokenizer.vocab_size=100", "tokenizer.vocab_size must be"),
        ("model.num_hidden_layers=abc", "model.num_hidden_layers must be"),
        ("model.num_hidden_layers=0", "model.num_hidden_layers must be"),
        ("model.hidden_dropout_prob=2", "model.hidden_dropout_prob must be"),
        ("model.max_positions=abc", "model.max_positions must be"),
        ("model.sequence_length=abc", "model.sequence_length must be"),
        ("model.num_attention_heads=0", "model.num_attention_heads must be"),
        ("model.layer_norm_eps=abc", "model.layer_norm_eps must be"),
        ("model.initializer_range=-1.0", "model.initializer_range must be"),
        ("+model.type_vocab_size=2", "type_vocab_size"),
        ("+model.tie_word_embeddings=5", "model.tie_word_embeddings has a value that it cannot have"),
        ("model.position_init=sinus", "did you mean 'sinusoidal'"),
    ],
)
def test_bad_input_leaves_nothing(
    override: str, message: str, tiny: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if "fp16" in override and torch.cuda.is_available():
        pytest.skip("fp16 works here")
    monkeypatch.chdir(tmp_path)
    # nothing is prepared for what can be refused at once; only files are looked for later
    if "train_files" not in override:
        monkeypatch.setattr(mlm, "prepare_data", None)
    with pytest.raises(UserError, match=message) as caught:
        tiny.train(override)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
