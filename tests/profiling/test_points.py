import random
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from lookupffn import UserError
from lookupffn.profiling import sampling
from lookupffn.profiling.attained import MEANING
from lookupffn.profiling.check import errors, fit, predictions, report
from lookupffn.profiling.explain import predict
from lookupffn.profiling.measure_points import Bench, inputs_of, measure, measure_lookups
from lookupffn.profiling.plots import plot_check
from lookupffn.profiling.points import Measured, drawn, read_points, write_points
from lookupffn.profiling.timing import Point
from tests.profiling.synthetic import machine
from tests.profiling.test_measure import needs_compiler

SMALL = Point(64, 4, 16, 2, 16, 20, "float32", 1)


def made_up(shares, noise=0.0):
    """Points whose times are those that some shares give."""
    generator = random.Random(0)
    found = []
    for point in drawn(60, [1, 2])[0]:
        predicted = predict(point, machine(), point.bits, shares)
        factor = np.exp(generator.gauss(0, noise))
        parts = dict(predicted.lookup) | {name: s for name, s in predicted.gemm.items() if name != "call"}
        found.append(Measured(point, point.bits, factor * predicted.lookup_seconds, predicted.gemm_seconds, parts))
    return found


def test_the_draw_covers_the_space_and_does_not_change():
    model, held_out = drawn(99, [1, 2])
    assert len(model) == 66 and len(held_out) == 33 and drawn(99, [1, 2]) == (model, held_out)
    points = model + held_out
    assert {p.d for p in points} == {128, 256, 512, 768, 1024, 2048}
    assert {p.precision for p in points} == {"float32", "bfloat16", "int8"} and {p.threads for p in points} == {1, 2}
    assert min(p.tokens for p in points) == 1 and max(p.tokens for p in points) == 16384
    assert not {id(p) for p in model} & {id(p) for p in held_out}


def test_a_point_is_measured_in_every_precision():
    points = [replace(SMALL, precision=precision) for precision in ("float32", "bfloat16", "int8")]
    for found in measure(points, seconds=0, parts=False):
        assert found.lookup > 0 and found.gemm > 0 and 2 < found.entropy <= 4 and not found.parts
    assert all(seconds > 0 for seconds in measure_lookups(points, seconds=0))


def test_the_mean_of_the_best_three_passes_counts(monkeypatch):
    times = iter([8.0, 5.0, 40.0, 5.0, 5.0])
    monkeypatch.setattr(
        "lookupffn.profiling.measure_points.by_turns", lambda functions, **_: dict.fromkeys(functions, next(times))
    )
    (found,) = measure_lookups([SMALL], seconds=60)
    assert found == pytest.approx(5.0 / 25)  # calls a turn


def test_uneven_codes_have_less_entropy():
    assert Bench(replace(SMALL, offset=2.0)).entropy < Bench(SMALL).entropy - 0.5
    assert len(inputs_of(replace(SMALL, tokens=1))) > 60


def test_files(tmp_path):
    points = [replace(one, parts={}) if i == 0 else one for i, one in enumerate(made_up(None)[:5])]
    write_points(tmp_path / "points.csv", points)
    again = read_points(tmp_path / "points.csv")
    assert [one.point for one in again] == [one.point for one in points]
    assert again[1].lookup == pytest.approx(points[1].lookup, rel=1e-3) and again[0].parts == {}
    (tmp_path / "bad.csv").write_text("d,tables\n1,2\n")
    for name, message in (("bad.csv", "not a file of measured points"), ("absent.csv", "cannot read")):
        with pytest.raises(UserError, match=message):
            read_points(tmp_path / name)


@pytest.mark.slow
def test_the_fit_finds_shares_back():
    true = {name: start for name, (start, _) in MEANING.items()} | {
        "projection": 0.4,
        "product_float32": 0.5,
        "call": 2,
    }
    measured = made_up(true, noise=0.02)
    found = fit(measured, machine())
    for name in ("projection", "product_float32"):
        assert found[name] == pytest.approx(true[name], rel=0.15)
    assert errors(measured, predictions(measured, machine(), found)).within_bars()


def test_errors_are_counted():
    measured = made_up(None)
    exact = errors(measured, predictions(measured, machine()))
    assert exact.within_bars() and exact.wrong_signs == 0 and np.max(exact.both) < 1e-9
    doubled = [replace(one, lookup=20 * one.lookup) for one in measured]
    off = errors(doubled, predictions(doubled, machine()))
    assert not off.within_bars() and off.wrong_signs > 0 and np.median(off.lookup) == pytest.approx(0.95)
    assert "right" in report("x", off)


def test_the_plot(tmp_path):
    measured = made_up(None)
    plot_check(
        measured, predictions(measured, machine()), tmp_path / "a.png", "made up", [i % 3 == 0 for i in range(40)]
    )
    assert (tmp_path / "a.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("chain", "part"),
    [
        (["load", "product_strip", "block_product"], "projection"),
        (["store", "butterfly", "across_blocks", "bh4_factor"], "transform"),
        (["hash_lanes", "hash_across_tokens", "hash_many"], "hash"),
        (["store", "pack_slice", "operator", "with_rows", "operator", "gather_sliced"], "packing"),
        (["operator", "add_reads", "gather_sliced"], "gather"),
        (["_mm512_dpbusd_epi32", "run"], "projection"),
        (["Strip512"], "projection"),
        (["FloatStrip"], "projection"),
        (["lookup_ffn"], "call"),
    ],
)
def test_parts_by_the_functions_at_an_address(chain, part):
    assert sampling._part(chain) == part


@needs_compiler
def test_samples_of_a_busy_thread():
    """A quarter of a second at 4,000 samples a second, of which other work may take some."""
    with sampling.sampling(), sampling.kept():
        end = time.monotonic() + 0.25
        while time.monotonic() < end:
            pass
        assert sampling.samples().total() > (100 if sys.platform == "linux" else -1)


def test_bare_names():
    assert sampling._bare("void lookupffn::(anonymous namespace)::add_reads<1>(float const*, long)") == "add_reads"
    assert sampling._bare("lookupffn::store(float*, float __vector(16))") == "store"
