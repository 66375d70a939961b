import logging
import subprocess

import pytest
import yaml

from lookupffn import UserError
from lookupffn.ops.build import BuildError, find_compiler
from lookupffn.profiling import measure, rows_alone, system
from lookupffn.profiling.loops import library, loops, processors
from lookupffn.profiling.machine import machine_from
from lookupffn.profiling.timing import by_turns
from tests.profiling.synthetic import machine as synthetic
from tests.scripts.loading import load_script


def has_compiler():
    try:
        return bool(find_compiler())
    except BuildError:
        return False


needs_compiler = pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")


@pytest.fixture
def quick(monkeypatch):
    """One pass, and few sizes of rows."""
    monkeypatch.setattr(
        "lookupffn.profiling.passes.in_passes",
        lambda measurements, **_: {key: [rate] for measure in measurements for key, rate in measure().items()},
    )
    monkeypatch.setattr(measure, "ROWS", (64, 4096))
    monkeypatch.setattr(measure, "smallest_calls", lambda: {"gemm": int, "lookup": int, "operator": int})
    monkeypatch.setattr(system, "other_work", lambda: 0.5)


@needs_compiler
def test_loops_do_what_they_say():
    measured = loops()
    kinds = dict.fromkeys(name for name, _ in measured.kinds())
    assert "float32" in kinds
    # no processor does less than a multiply-add in ten cycles, or more than 4,096 a cycle
    assert 0.1 < measured.arithmetic(0, 1) < 4096 * 6
    assert 0.3 < measured.clock(1) < 8
    with measured.buffer(1 << 22, True) as buffer:
        in_order = [measured.stream(buffer, 1 << 22, 1, operation) for operation in range(3)]
        assert all(0.1 < rate < 10_000 for rate in in_order)
        for row in (64, 128, 256, 512, 4096):
            assert 0.1 < measured.rows(buffer, 1 << 22, row, 1, 0) < 10_000
        near, far = measured.latency(buffer, 16 << 10), measured.latency(buffer, 1 << 22)
        assert 0.2 < near < far < 10_000


@pytest.mark.slow
@needs_compiler
def test_a_small_profile_is_a_machine(quick, caplog):
    with caplog.at_level(logging.WARNING):
        content = measure.measure_machine("this one", largest=1 << 18, progress=False)
    assert "the machine is busy: other work takes 50% of it" in caplog.text
    machine = machine_from(content, "the profile")
    assert machine.name == "this one" and machine.cores == len(processors())
    assert content["about"]["counters"] and content["about"]["date"]


def test_the_script_prints_and_saves(monkeypatch, tmp_path, capsys):
    script = load_script("profile_hardware")
    content = synthetic().to_dict() | {"about": {"counters": "none here"}}
    monkeypatch.setattr(measure, "measure_machine", lambda name: content | {"name": name})
    path = tmp_path / "machine.yaml"
    script.main(["--output", str(path), "--name", "this one"])
    assert machine_from(yaml.safe_load(path.read_text()), str(path)).name == "this one"
    assert "GB/s of rows at random" in capsys.readouterr().out
    script.main(["--output", str(path), "--name", "again", "--compare", str(path)])
    assert "figures repeat within 10%" in capsys.readouterr().out


def test_mistakes_are_one_line(tmp_path, monkeypatch):
    script = load_script("profile_hardware")
    with pytest.raises(UserError, match="give a file in a folder that exists"):
        script.main(["--output", str(tmp_path / "absent" / "machine.yaml")])
    with pytest.raises(UserError, match="power of two"):
        measure.measure_machine(largest=100_000, progress=False)
    monkeypatch.setattr(system, "memory_bytes", lambda: (1 << 24, 1 << 24))
    monkeypatch.setattr(system, "other_work", lambda: 0.0)
    with pytest.raises(UserError, match="MB of memory are free"):
        measure.measure_machine(largest=1 << 30, progress=False)


def test_without_a_compiler_one_line(monkeypatch):
    monkeypatch.setenv("CXX", "/no/such/compiler")
    monkeypatch.setattr("lookupffn.profiling.loops._LIBRARY", _fresh())
    with pytest.raises(UserError, match="cannot be compiled"):
        library.__wrapped__()


def _fresh():
    from pathlib import Path

    import lookupffn.profiling
    from lookupffn.ops.build import Sources
    from lookupffn.ops.library import NativeLibrary

    return NativeLibrary(Sources("profiling", Path(lookupffn.profiling.__file__).parent / "csrc"))


def test_other_work_is_seen():
    assert 0 <= system.other_work(0.05) <= 1


def test_turns():
    calls = []
    seconds = by_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, seconds=0, least=3)
    assert calls == ["a", "b"] * 4 and seconds.keys() == {"a", "b"}


def test_counts_of_perf(monkeypatch):
    """perf as it prints with -x,: the counts of few rounds are taken from those of many."""
    printed = []

    def perf(command, **_):
        rounds = int(command[-1])
        lines = [f"{1000 + 50 * rounds * 100},,cycles:u,1,100.00,,", "<not supported>,,cache-misses,0,100.00,,"]
        printed.append(command)
        return subprocess.CompletedProcess(command, 0, "", "\n".join(lines))

    class Rows:
        rows_a_round = staticmethod(lambda row: 100)

    monkeypatch.setattr(system.subprocess, "run", perf)
    assert measure._counted(Rows()) == {"cycles": 50}
    assert all(command[:2] == ["perf", "stat"] for command in printed)


@needs_compiler
def test_rows_are_read_alone():
    rows_alone.main(1 << 22, 2048, 2)
