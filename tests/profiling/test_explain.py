from dataclasses import replace

import pytest
import yaml

from lookupffn.profiling.attained import MEANING, PATH, attained
from lookupffn.profiling.explain import has_tiles, predict
from lookupffn.profiling.machine import Rate
from lookupffn.profiling.timing import Point
from tests.profiling.synthetic import machine

POINT = Point(d=512, tables=128, rows=256, probes=1, block=64, tokens=8192, precision="float32", threads=2)


def arithmetic(**factors):
    return {
        name: Rate(r.one * factors.get(name, 1), r.all * factors.get(name, 1))
        for name, r in machine().arithmetic.items()
    }


def test_parts_add_up():
    found = predict(POINT, machine())
    assert list(found.lookup) == ["call", "projection", "transform", "hash", "gather", "packing"]
    assert list(found.gemm) == ["call", "first product", "activation", "second product"]
    assert found.lookup_seconds == pytest.approx(sum(found.lookup.values())) and min(found.lookup.values()) >= 0
    assert found.ratio == pytest.approx(found.gemm_seconds / found.lookup_seconds)


def test_arithmetic_by_hand():
    """BH4 at one thread: 2 copies of 4 products of 512 x 64, at the attained share of 110 GFLOP/s."""
    shares = dict.fromkeys(MEANING, 1.0) | {"projection": 0.5, "projection_edge": 0.0}
    point = replace(POINT, threads=1)
    flops = 8192 * (2 * 4 * 2 * 512 * 64 + 2 * 2 * 512)
    assert predict(point, machine(), shares=shares).lookup["projection"] == pytest.approx(flops / (0.5 * 110e9))
    product = 8192 * 2 * 512 * 2048 / 110e9 + 4 * 512 * 2048 / (machine().stream_rate(8 * 512 * 2048, 1) * 1e9)
    found = predict(point, machine(), shares=shares | {"elements_float32": 1e9})
    assert found.gemm["first product"] == pytest.approx(product + fresh(), rel=0.01)


def fresh():
    return machine().call_us["page"] * 1e-6 * 4 * 8192 * 2048 / 4096


def test_more_of_anything_never_takes_less():
    base = predict(POINT, machine()).lookup_seconds
    for change in ({"tokens": 16384}, {"tables": 256}, {"probes": 2}, {"d": 1024}, {"rows": 512}, {"threads": 1}):
        assert predict(replace(POINT, **change), machine()).lookup_seconds > base, change


def test_a_faster_machine_is_never_slower():
    slow, fast = machine(), machine(arithmetic=arithmetic(float32=2, bfloat16=2, int8=2))
    for tokens in (1, 128, 8192):
        for precision in ("float32", "bfloat16", "int8"):
            point = replace(POINT, tokens=tokens, precision=precision)
            before, after = predict(point, slow), predict(point, fast)
            assert after.lookup_seconds < before.lookup_seconds and after.gemm_seconds < before.gemm_seconds


def test_few_distinct_rows_come_from_the_cache_again():
    few = replace(POINT, tokens=128, rows=4096)
    even, uneven = (predict(few, machine(), entropy).lookup["gather"] for entropy in (12.0, 3.0))
    assert uneven < even


def test_few_tokens_read_rows_and_do_not_pack():
    assert predict(replace(POINT, tokens=128), machine()).lookup["packing"] == 0
    assert predict(POINT, machine()).lookup["packing"] > 0
    # a table that no slice holds is never packed
    assert predict(replace(POINT, rows=16384), machine()).lookup["packing"] == 0


def test_what_binds():
    assert predict(replace(POINT, tokens=1, d=128, tables=8), machine()).binding == "calls"
    assert predict(replace(POINT, tokens=64, rows=4096), machine()).binding == "memory"
    starved = machine(arithmetic={name: Rate(1, 2) for name in machine().arithmetic})
    assert predict(POINT, starved).binding == "arithmetic"


def test_memory_that_adds():
    point = replace(POINT, tokens=64, rows=4096)
    without, within = predict(point, machine()), predict(point, machine(gather_in_memory=1000.0))
    assert within.lookup["gather"] < 0.2 * without.lookup["gather"]


def test_tiles_speed_products_up():
    assert not has_tiles(machine())
    tiled = machine(arithmetic=arithmetic(bfloat16=16, int8=16))
    assert has_tiles(tiled)
    point = replace(POINT, precision="bfloat16")
    assert predict(point, tiled).lookup_seconds < predict(point, machine()).lookup_seconds


def test_dense_projection():
    found = predict(replace(POINT, block=0), machine())
    assert found.lookup["transform"] == 0
    assert found.lookup["projection"] > predict(replace(POINT, block=16), machine()).lookup["projection"]


def test_every_share_that_was_fitted_is_there():
    assert yaml.safe_load(PATH.read_text(encoding="utf-8"))["shares"].keys() == MEANING.keys()
    assert all(value > 0 for value in attained().values())
