import json

import pytest

from lookupffn.errors import UserError
from lookupffn.report.runs import find_runs, perplexity
from tests.report.synthetic import write_gemm, write_run


def test_finds_finished_runs_at_any_depth_and_names_unfinished_ones(tmp_path):
    write_run(tmp_path / "outer")
    write_run(tmp_path / "outer" / "a" / "inner")
    write_run(tmp_path / "outer" / "checkpoints" / "not-a-run-of-ours")
    begun = write_run(tmp_path / "begun")
    (begun / "summary.json").unlink()
    with (begun / "metrics.jsonl").open("a") as file:
        file.write('{"step": 16')  # being written
    write_run(tmp_path / "gone", loss=1000.0)
    (tmp_path / "fresh").mkdir()
    for name in ("config.yaml", ".lock"):
        (tmp_path / "fresh" / name).touch()
    # a folder given twice counts once
    found = find_runs([tmp_path, tmp_path / "outer"])
    runs, left_out = found.runs, found.left_out
    assert [run.path for run in runs] == [tmp_path / "outer", tmp_path / "outer" / "a" / "inner"]
    assert {(left.path.name, left.why) for left in left_out} == {
        ("begun", "unfinished, at step 1,500"),
        ("fresh", "unfinished, no step logged"),
        ("gone", "diverged to a loss of 1e+03 nats"),
    }


def test_a_run_knows_what_it_shares_and_what_it_varies(tmp_path):
    run = find_runs([write_gemm(tmp_path / "run", loss=3.0, exit_step=250, training_loss=2.5)]).runs[0]
    assert run.perplexity == perplexity(3.0) and perplexity(1000.0) == float("inf")
    assert run.tokens_at("plateau_exit_step") == 250 * 4096 and run.tokens_at("second_fall_step") is None
    assert run.conditions["model.hidden_size"] == 128 and run.conditions["mask_rate"] == 0.15
    assert run.settings["ffn.intermediate_size"] == 512 and run.settings["optimizer.betas"] == (0.9, 0.98)
    # null is as good as absent, and names are no settings
    assert "init_from" not in run.conditions and "optimizer.warmup_steps" not in run.settings
    assert not {"model.name", "optimizer.name"} & (run.conditions.keys() | run.settings.keys())
    assert [point.tokens for point in run.curve] == [500 * 4096, 1000 * 4096, 1500 * 4096]
    assert [(line.tokens, line.loss) for line in run.training] == [(s * 4096, 2.5) for s in range(100, 1501, 100)]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("summary.json", "{"),
        ("summary.json", "[]"),
        ("summary.json", '{"ffn": "gemm"}'),
        ("summary.json", b"\xff\xfe"),
        ("summary.json", "[" * 100_000),
        ("config.yaml", "model: [1"),
        ("config.yaml", "model: {}"),
        ("config.yaml", "!!python/object/apply:os.system ['exit 1']"),
        ("config.yaml", None),
        ("metrics.jsonl", '{"step": 1}\n'),
        ("metrics.jsonl", '{"step": 1, "tokens": 1, "training_flops": 1, "validation_loss": NaN}\n'),
        ("metrics.jsonl", '{"step": 1, "tokens": 1, "training_flops": 1, "loss": "low"}\n'),
        ("metrics.jsonl", '{"step": 1, "tokens": 1, "training_flops": 1}\n{"tok'),
        ("metrics.jsonl", None),
    ],
)
def test_damage_is_one_line_that_names_the_file(tmp_path, file, content):
    path = write_run(tmp_path / "run") / file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        find_runs([tmp_path])
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("validation_loss", None),
        ("validation_loss", float("nan")),
        ("ffn_flops_per_token", "many"),
        ("seed", None),
        ("steps", 0),
        ("ffn_options", []),
        ("plateau_exit_step", "late"),
        ("statistics", 3),
    ],
)
def test_a_summary_with_an_impossible_value_is_damaged(tmp_path, name, value):
    path = write_run(tmp_path / "run", **{"parameters": 3}) / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(UserError, match=f"damaged file {path}"):
        find_runs([tmp_path])


def test_nothing_to_compare(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        find_runs([tmp_path / "absent"])
    with pytest.raises(UserError, match="no finished run"):
        find_runs([tmp_path])
