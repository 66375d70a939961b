"""Compiling the kernels: without a compiler, with a broken one, by several processes at once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPT = """
import warnings, torch
from lookupffn import build_ffn
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    torch.manual_seed(0)
    ffn = build_ffn("lookup", hidden_size=32)
    x = torch.randn(7, 32)
    with torch.no_grad():
        y = ffn(x)
    ffn(x).sum().backward()
ours = [str(w.message) for w in caught if "kernels" in str(w.message)]
print("WARNINGS", len(ours), *ours)
print("SUM", format(y.double().sum().item(), ".6f"))
"""


def start(tmp_path, **environment):
    environment = {**os.environ, "LOOKUPFFN_BACKEND": "auto", "LOOKUPFFN_CACHE": str(tmp_path), **environment}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    lines = dict(line.split(" ", 1) for line in out.splitlines())
    return lines["WARNINGS"], lines["SUM"], err


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"CXX": "no-such-compiler"}, "no-such-compiler does not exist"),
        ({"CXX": "", "PATH": ""}, "no C++ compiler"),
        ({"CXX": "false"}, "false failed"),
    ],
)
def test_without_a_compiler_one_warning_and_the_reference(tmp_path, environment, reason):
    warnings, total, _ = finish(start(tmp_path, **environment))
    assert warnings.startswith("1 ") and reason in warnings
    reference = finish(start(tmp_path, LOOKUPFFN_BACKEND="reference"))
    assert (reference[0], reference[1]) == ("0", total)
    assert not list(tmp_path.glob("kernels/*.so"))


def test_unwritable_cache_falls_back(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    warnings, _, _ = finish(start(blocker))
    assert warnings.startswith("1 ")


@pytest.mark.usefixtures("kernels")
def test_several_processes_compile_once(tmp_path):
    results = [finish(process) for process in [start(tmp_path) for _ in range(3)]]
    assert [result[0] for result in results] == ["0"] * 3
    assert len({result[1] for result in results}) == 1
    assert sum("compiling the CPU kernels" in result[2] for result in results) == 1
    assert len(list(tmp_path.glob("kernels/*.so"))) == 1
    assert not [path for path in tmp_path.glob("kernels/*") if path.is_dir()]
