"""The commands themselves, as a user types them: train, evaluate, sweep, also on two processes."""

import json
from pathlib import Path

import pytest

from tests.training.tiny import ROOT, Workspace, run, workspace

TRAIN, EVALUATE = str(ROOT / "train.py"), str(ROOT / "evaluate.py")
TWO_PROCESSES = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return workspace(tmp_path_factory.getbasetemp())


@pytest.mark.slow
def test_train_then_evaluate(tiny: Workspace, tmp_path: Path):
    """From any folder, tracked offline, into a folder of the default name; scored by one process and by two."""
    overrides = [o for o in tiny.overrides() if o != "tracker=none"]
    trained = run(TRAIN, *overrides, cwd=tmp_path, WANDB_MODE="offline")
    assert "validation perplexity" in trained.stdout and "Traceback" not in trained.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["outputs"]
    (folder,) = (tmp_path / "outputs").iterdir()
    assert folder.name.startswith("lookup-tiny-text-seed0-")
    assert {p.name for p in folder.iterdir()} == {
        "checkpoints", "config.yaml", "metrics.jsonl", "model", "summary.json", "token_counts.json", "wandb",
    }  # fmt: skip
    assert list((folder / "wandb").glob("offline-run-*"))
    summary = json.loads((folder / "summary.json").read_text())

    common = (f"checkpoint={folder}", f"cache_dir={tiny.root}/cache")
    scored = run(EVALUATE, *common, "evaluation.batch_size=1", cwd=tmp_path)
    assert "validation perplexity" in scored.stdout
    one = json.loads((folder / "evaluation.json").read_text())
    assert one["validation_loss"] == pytest.approx(summary["validation_loss"], rel=1e-6)
    run(*TWO_PROCESSES, EVALUATE, *common, "evaluation.batch_size=7", "output=two.json", cwd=tmp_path)
    two = json.loads((tmp_path / "two.json").read_text())
    assert two["processes"] == 2 and two["masked_validation_tokens"] == one["masked_validation_tokens"]
    assert two["validation_loss"] == pytest.approx(one["validation_loss"], rel=1e-6)


@pytest.mark.slow
def test_multirun_of_four_goes_on_where_it_was(tiny: Workspace, tmp_path: Path):
    # one command for both FFNs cannot set options of one of them
    overrides = [o for o in tiny.overrides("ffn=gemm", "training.max_steps=2") if o != "ffn=gemm"]
    command = (TRAIN, "-m", *overrides, "ffn=gemm,lookup", "seed=0,1", "output_dir=sweep")
    run(*command, cwd=tmp_path)
    members = sorted((tmp_path / "sweep").iterdir())
    assert [p.name for p in members] == [f"{ffn}-seed{seed}" for ffn in ("gemm", "lookup") for seed in (0, 1)]
    assert [p.name for p in tmp_path.iterdir()] == ["sweep"]
    summaries = [json.loads((p / "summary.json").read_text()) for p in members]
    # the same tokens and masks for all of them
    assert (
        len({(s["data_fingerprint"], s["masked_validation_tokens"], s["unigram_perplexity"]) for s in summaries}) == 1
    )
    assert len({s["validation_loss"] for s in summaries}) == 4
    (members[3] / "summary.json").unlink()  # as if the sweep had been killed in its last member
    again = run(*command, cwd=tmp_path)
    assert again.stderr.count("is finished: skipped") == 3 and again.stdout.count("validation perplexity") == 1
    finished = json.loads((members[3] / "summary.json").read_text())
    assert finished["validation_loss"] == summaries[3]["validation_loss"]
