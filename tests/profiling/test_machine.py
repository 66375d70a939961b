import copy

import pytest
import yaml

from lookupffn import UserError
from lookupffn.profiling.machine import Curve, Rate, machine_from, read_yaml, rounded
from lookupffn.profiling.measure import seen_sizes
from lookupffn.profiling.tables import differences, machine_table, size_text
from tests.profiling.synthetic import SIZES, machine


def changed(values, path, value):
    values = copy.deepcopy(values)
    node = values
    for key in path[:-1]:
        node = node[key]
    if value is KeyError:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return values


def test_a_file_gives_back_the_machine(tmp_path):
    path = tmp_path / "machine.yaml"
    path.write_text(yaml.safe_dump(machine().to_dict(), default_flow_style=None))
    again = machine_from(read_yaml(path), "the file")
    before = machine()
    assert again.levels == before.levels and again.cores == 2 and again.name == before.name
    for row, size, threads in ((64, 1e5, 1), (300, 3e7, 2), (4096, 1e9, 2)):
        assert again.row_rate(row, size, threads) == pytest.approx(before.row_rate(row, size, threads), rel=0.01)
        assert again.stream_rate(size, threads) == pytest.approx(before.stream_rate(size, threads), rel=0.01)


def test_rates_between_what_was_measured():
    made = machine()
    at = made.rows["all", "huge", "prefetched", 256].at
    assert made.row_rate(256, SIZES[4], 2) == pytest.approx(at(SIZES[4]))
    low, high = made.row_rate(256, 1e9, 2), made.row_rate(1024, 1e9, 2)
    assert low < made.row_rate(700, 1e9, 2) < high
    # beyond both ends the last figure holds
    assert made.row_rate(8192, 1e9, 2) == made.row_rate(4096, 1e9, 2)
    assert made.row_rate(16, 1e9, 2) == made.row_rate(64, 1e9, 2)
    assert Curve((1.0, 100.0), (1.0, 4.0)).at(10) == pytest.approx(2)


def test_threads_between_one_and_all():
    made = machine(cores=8)
    assert made.row_rate(256, 1e6, 1) < made.row_rate(256, 1e6, 8)
    assert Rate(10, 30).of(1) == 10 and Rate(10, 30).of(2) == 20 and Rate(10, 30).of(8) == 30


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("arithmetic", "int8"), KeyError, "lacks int8"),
        (("cores",), KeyError, "lacks cores"),
        (("clock_ghz",), -3.5, "clock_ghz must be a positive number below 20, not -3.5"),
        (("clock_ghz",), 3500, "clock_ghz must be a positive number below 20"),
        (("arithmetic", "float32", "one"), "fast", "one must be a positive number"),
        (("arithmetic", "float32", "all"), 10.0, "the machine was busy"),
        (("levels", 2, "bytes"), 64 << 30, r"L3 .* is larger than memory"),
        (("levels", 1, "read", "one"), 0, "one must be a positive number"),
        (("levels",), [], "levels must run from L1 to memory"),
        (("levels",), 5, "levels must be a list"),
        (("streams", "all"), [1.0], "all has 1 values for 18 working sets"),
        (("streams", "working_sets"), [1.0] * 18, "working_sets must rise"),
        (("rows", "one", "huge", "plain", 64), KeyError, "lacks rows of 64 or 4096 bytes"),
        (("rows", "one", "huge"), KeyError, "lacks huge"),
        (("latency_ns", "ns"), [float("nan")] * 18, "must be a positive number"),
        (("rows",), 3, "must hold named values"),
    ],
)
def test_what_no_machine_is_gets_one_line(path, value, message):
    with pytest.raises(UserError, match=message) as error:
        machine_from(changed(machine().to_dict(), path, value), "some.yaml")
    assert "\n" not in str(error.value) and str(error.value).startswith("some.yaml")


@pytest.mark.parametrize("text", ["[1, 2", "- 1\n- 2", ""])
def test_a_file_that_is_none(tmp_path, text):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError, match=r"bad\.yaml"):
        read_yaml(tmp_path / "bad.yaml")
    with pytest.raises(UserError, match="cannot read"):
        read_yaml(tmp_path / "absent.yaml")


def test_caches_as_the_latencies_show_them():
    stated = [("L1", 32 << 10, 1), ("L2", 1 << 20, 1), ("L3", 32 << 20, 2)]
    sizes = tuple(float(1 << power) for power in range(14, 32))

    def latency(third):
        return Curve(
            sizes,
            tuple(1.1 if s <= 32 << 10 else 3.8 if s <= 1 << 20 else 14.0 if s <= third else 150.0 for s in sizes),
        )

    assert seen_sizes(stated, latency(32 << 20)) == [32 << 10, 1 << 20, 32 << 20]
    # a virtual machine that gets half of what is stated
    assert seen_sizes(stated, latency(16 << 20)) == [32 << 10, 1 << 20, 16 << 20]


def test_in_words():
    text = machine_table(machine())
    assert "a made-up machine, 2 cores" in text and "32 MB" in text and "gemm 24" in text
    assert [size_text(size) for size in (64, 32 << 10, 3 << 19, 2 << 30)] == ["64 B", "32 KB", "1.5 MB", "2 GB"]
    faster = machine(arithmetic={name: Rate(2 * r.one, 2 * r.all) for name, r in machine().arithmetic.items()})
    assert "float32 arithmetic, all: 220, now 440" in differences(machine(), faster)
    same = differences(machine(), machine())
    total = same.split()[0]
    assert same == f"{total} of {total} figures repeat within 10%\n"


def test_rounding():
    assert [rounded(value) for value in (1.23456, 98.765, 1234567.0, 0.0056789)] == [1.235, 98.8, 1235000.0, 0.00568]
