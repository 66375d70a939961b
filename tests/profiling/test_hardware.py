import copy

import pytest
import yaml

from lookupffn import UserError
from lookupffn.profiling.hardware import FOLDER, MEMORY_SHARE, describe, load_machine, machine_of, names, reference

SHEET = yaml.safe_load((FOLDER / "epyc_9654.yaml").read_text())


def test_ten_real_machines_and_some_that_do_not_exist():
    kinds = [load_machine(name).kind for name in names()]
    assert kinds.count("datasheet") >= 10 and kinds.count("hypothetical") >= 4 and "measured" in kinds


@pytest.mark.parametrize("name", names())
def test_every_machine_is_whole(name):
    machine = load_machine(name)
    assert machine.name in describe(machine)
    for size in (1e4, 1e6, 1e8, 1e10):
        for threads in (1, machine.cores):
            # no core reads more than 512 bytes in each of its cycles
            assert 0 < machine.row_rate(2048, size, threads) < 512 * 6 * threads
            assert 0 < machine.stream_rate(size, threads) < 512 * 6 * threads
    if machine.kind == "datasheet":
        assert machine.sources["memory_gbs"].endswith(")") and len(machine.sources) == 12


def test_a_data_sheet_by_hand():
    machine = load_machine("epyc_9654")
    assert machine.arithmetic["float32"].one == pytest.approx(3.55 * 32)
    assert machine.arithmetic["int8"].all == pytest.approx(3.55 * 128 * 96)
    assert machine.levels[-1].read.all == pytest.approx(460.8 * MEMORY_SHARE)
    # two cores of it are the reference machine, but for the clock
    for size in (1 << 18, 1 << 23):
        ratio = machine.row_rate(256, size, 1) / reference().row_rate(256, size, 1)
        assert 0.6 < ratio < 1.5


def test_hypothetical_machines_change_what_they_say():
    base = load_machine("epyc_9654")
    cache, memory, matrix, near = map(
        load_machine, ("twice_the_cache", "twice_the_memory", "matrix_units", "near_memory")
    )
    assert cache.levels[2].bytes == 2 * base.levels[2].bytes and cache.levels[0] == base.levels[0]
    assert cache.row_rate(2048, 64 << 20, 96) > 1.2 * base.row_rate(2048, 64 << 20, 96)
    assert memory.stream_rate(1e11, 96) == pytest.approx(2 * base.stream_rate(1e11, 96), rel=0.05)
    assert matrix.arithmetic["int8"].one == 4 * base.arithmetic["int8"].one
    assert matrix.arithmetic["float32"] == base.arithmetic["float32"]
    assert near.gather_in_memory == pytest.approx(4 * 460.8 * MEMORY_SHARE) and not base.gather_in_memory


def changed(path, value):
    values = copy.deepcopy(SHEET)
    node = values
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (changed(["figures", "cores"], None), "lacks figures.cores"),
        (changed(["figures", "cores", "value"], -1), "figures.cores must be a positive number, not -1"),
        (changed(["figures", "memory_gbs", "source"], ""), "figures.memory_gbs does not say its source"),
        (changed(["figures", "l3_mb", "value"], 10**6), "a cache is larger than the memory"),
        (changed(["figures"], None), "lacks figures"),
        (changed(["kind"], "imagined"), "kind must be measured, datasheet or hypothetical"),
        ({"kind": "hypothetical", "base": "nothing", "times": {}}, "base must be the data sheet"),
        ({"kind": "hypothetical", "base": "epyc_9654", "times": {"luck": 2}}, "times must give a factor"),
        ({"kind": "hypothetical", "base": "epyc_9654", "times": {"cache": 0}}, "times.cache must be a positive"),
    ],
)
def test_mistakes_are_one_line(values, message):
    with pytest.raises(UserError, match=message) as error:
        machine_of(values, "mine.yaml")
    assert "\n" not in str(error.value)


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(UserError, match="did you mean 'graviton3'"):
        load_machine("gravitron3")
