import math
from pathlib import Path

import pytest
import torch

from lookupffn.errors import UserError
from lookupffn.models.loading import load_model
from lookupffn.objectives.mlm import first_step_below
from lookupffn.runs.records import read_token_counts
from tests.training.tiny import Workspace


def test_first_step_below():
    lines = [
        {"step": 10, "loss": 1.0},  # training losses do not count
        {"step": 20, "validation_loss": 6.0},
        {"step": 30, "validation_loss": 5.51},
        {"step": 40, "validation_loss": 5.5},
        {"step": 50, "validation_loss": 4.0},
    ]
    assert first_step_below(lines, 5.5) == 40
    assert first_step_below(lines, 5.51) == 30
    assert first_step_below(lines, 4.0) == 50
    assert first_step_below(lines, 3.9) is None
    assert first_step_below([], 6.0) is None


def test_output_bias_starts_at_the_unigram(tiny: Workspace, tmp_path: Path):
    still = ("training.max_steps=1", "optimizer.lr=1e-30", "optimizer.weight_decay=0",
             "evaluation.max_tokens=null")  # fmt: skip
    unigram = tiny.train(f"output_dir={tmp_path}/unigram", *still)
    zeros = tiny.train(f"output_dir={tmp_path}/zeros", "model.output_bias_init=zeros", *still)
    assert unigram["validation_loss"] == pytest.approx(unigram["unigram_loss"], abs=0.1)
    assert zeros["validation_loss"] == pytest.approx(math.log(300), abs=0.1)
    with pytest.raises(UserError, match="did you mean 'unigram'"):
        tiny.train("model.output_bias_init=unigrams")


def test_embeddings_start_at_the_neighbours(tiny: Workspace, tmp_path: Path):
    still = ("training.max_steps=1", "optimizer.lr=1e-30", "optimizer.weight_decay=0")
    rows = {}
    for start in ("ppmi", "normal"):
        tiny.train(f"output_dir={tmp_path}/{start}", f"model.embedding_init={start}", *still)
        model = load_model(tmp_path / start / "model")
        rows[start] = model.get_input_embeddings().weight.detach()
        assert torch.equal(model.lm_head.decoder.weight, rows[start])
        # only the words of the text start elsewhere, and they are as large as the others
        assert rows[start].std() == pytest.approx(model.config.initializer_range, rel=0.2)
    moved = ~torch.isclose(rows["ppmi"], rows["normal"]).all(1)
    seen = torch.from_numpy(read_token_counts(tmp_path / "ppmi", len(moved))) > 0
    assert not moved[~seen].any() and moved[seen].float().mean() > 0.9
    with pytest.raises(UserError, match="did you mean 'ppmi'"):
        tiny.train("model.embedding_init=pmi")


def test_the_unigram_bar_is_a_property_of_the_split(tiny: Workspace, tmp_path: Path):
    found = [
        tiny.train(f"output_dir={tmp_path}/{tokens}", "training.max_steps=1", f"evaluation.max_tokens={tokens}")
        for tokens in (64, 1024, "null")
    ]
    assert len({summary["unigram_perplexity"] for summary in found}) == 1
    assert found[0]["masked_validation_tokens"] == 2 * 5 < found[1]["masked_validation_tokens"]
