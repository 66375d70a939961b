import json
import logging
from dataclasses import replace

import pytest

from lookupffn import UserError
from lookupffn.cli.choices import with_hardware_file
from lookupffn.cli.commands import PROJECTED, check_pretraining
from lookupffn.cli.project_hardware import project_hardware, project_run
from lookupffn.config.race import without_race
from lookupffn.config.run import resolve
from lookupffn.layers import build_ffn
from lookupffn.profiling import advise, load_machine
from lookupffn.profiling.advise import flops_of
from lookupffn.profiling.hardware import reference
from lookupffn.profiling.project import any_seconds, base_point, best, break_even, resized
from lookupffn.profiling.timing import Point
from lookupffn.report.inference_times import read_times
from tests.profiling.synthetic import machine
from tests.report.synthetic import write_run
from tests.training.tiny import compose

POINT = Point(512, 128, 256, 1, 32, 8192, "float32", 2)


def composed(*overrides):
    return compose("project_hardware", *overrides)


@pytest.mark.slow
def test_prints_every_axis_and_draws(tmp_path, capsys):
    project_hardware(composed("hardware=xeon_8480p", f"output={tmp_path}/figures", "tokens=512"))
    printed = capsys.readouterr().out
    for text in ("Xeon Platinum 8480+", "hidden size", "tokens", "tables", "rows a table", "precision", "binds"):
        assert text in printed
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"axes.png", "break-even.png", "machines.png"}


def test_a_file_in_place_of_a_name(tmp_path, capsys):
    import yaml

    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(machine().to_dict()))
    arguments = with_hardware_file(["model=tiny", f"hardware={path}", "ffn=lookup"])
    assert arguments == ["model=tiny", f"hardware_file='{path}'", "ffn=lookup"]
    assert with_hardware_file(["hardware=grace"]) == ["hardware=grace"]
    project_hardware(composed("model=tiny", f"hardware_file={path}"))
    assert "a made-up machine" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["ffn=gemm"], "ffn=lookup, not ffn=gemm"),
        (["precision=int4"], "precision must be one of"),
        (["tokens=0"], "at least 1"),
        (["hardware_file=absent.yaml"], "cannot read the machine file"),
        (["runs=somewhere"], "name it by output=FILE.json"),
    ],
)
def test_mistakes_are_one_line(overrides, message):
    with pytest.raises(UserError, match=message) as error:
        project_hardware(composed(*overrides))
    assert "\n" not in str(error.value)


def test_times_of_runs_for_a_comparison(tmp_path, capsys):
    write_run(tmp_path / "runs" / "a", ffn="lookup")
    write_run(tmp_path / "runs" / "b", ffn="gemm")
    project_hardware(composed("hardware=grace", f"runs={tmp_path}/runs", f"output={tmp_path}/grace.json"))
    times = read_times(tmp_path / "grace.json")
    assert times.projected and "Grace" in times.device and len(times.by_identity) == 2
    by_name = {one["ffn"]: one for one in json.loads((tmp_path / "grace.json").read_text())["variants"]}
    assert by_name["gemm"]["ratio"] == pytest.approx(1)
    assert by_name["lookup"]["us_per_token"] * by_name["lookup"]["ratio"] == pytest.approx(
        by_name["gemm"]["us_per_token"]
    )


def test_a_run_is_projected_to_its_machine(caplog):
    """hardware= of training: figures beside those of the run, whose own config does not know of it."""
    cfg = compose("train", "hardware=grace", "ffn=lookup", "ffn.num_tables=32")
    options = {name: value for name, value in without_race(cfg).ffn.items() if name != "name"}
    with caplog.at_level(logging.INFO):
        found = project_run(cfg, {"ffn": "lookup", "ffn_options": options})
    model = cfg.model
    point = Point(model.hidden_size, 1, 2, 1, 0, 8192, "float32", load_machine("grace").cores)
    seconds = any_seconds("lookup", options, point, load_machine("grace"))
    assert found["projected_us_per_token"] == pytest.approx(model.num_hidden_layers * 1e6 * seconds / 8192)
    assert found.keys() == set(PROJECTED) and "projected to" in caplog.text
    assert not {"hardware", "hardware_file"} & resolve(cfg, ("data", "model", "ffn")).keys()


def test_a_run_with_a_machine_that_is_none(tmp_path):
    (tmp_path / "bad.yaml").write_text("kind: imagined\n")
    with pytest.raises(UserError, match="kind must be measured"):
        check_pretraining(compose("train", f"hardware_file={tmp_path}/bad.yaml"))


def test_recipes_keep_their_proportions():
    assert resized(POINT, 1024) == replace(POINT, d=1024, tables=256, block=64)
    assert resized(POINT, 768).tables == 192


def test_break_even_between_points():
    assert break_even([0.5, 2.0], [100, 400]) == [pytest.approx(200)]
    assert break_even([2.0, 3.0], [1, 2]) == []
    assert len(break_even([0.5, 2.0, 0.5], [1, 2, 4])) == 2


def test_the_best_of_both():
    found = best(POINT, machine())
    assert found.lookup in ("float32", "bfloat16", "int8") and found.ratio > 0


def test_other_feed_forwards_by_their_cost():
    for name in ("switch", "low_rank", "product_key", "none"):
        assert any_seconds(name, {}, POINT, machine()) > 0
    point = replace(POINT, tokens=64)
    half = any_seconds("gemm", {"intermediate_size": 1024}, point, machine())
    assert 0.4 < half / any_seconds("gemm", {}, point, machine()) < 0.7


def test_a_point_out_of_configs():
    config = without_race(composed("model=small"))
    point = base_point(config.model, dict(config.ffn), 64, "int8", 2)
    assert (point.d, point.tables, point.probes, point.block, point.tokens) == (512, 128, 3, 16, 64)


def test_advice_keeps_to_its_budget():
    advice = advise(reference(), {"hidden_size": 512}, tokens=512)
    times = [one.prediction.lookup_seconds for one in advice]
    assert times == sorted(times) and len(advice) >= 6
    for one in advice:
        assert one.flops <= 16 * 512 * 512 / 6 and one.point.tables * one.point.probes >= 3 * 128
        assert one.flops == flops_of(one.point)
    ffn = build_ffn("lookup", hidden_size=512, **advice[0].options())
    assert ffn.cost().flops == pytest.approx(advice[0].flops)


def test_advice_that_nothing_fits():
    with pytest.raises(UserError, match="give more FLOPs or fewer rows"):
        advise(load_machine("grace"), {"hidden_size": 512}, flops=1000)
