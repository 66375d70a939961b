"""Compiling the kernels: without a compiler, with a broken one, by several processes at once."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lookupffn.ops import build, ownership
from lookupffn.ops.library import KERNELS, NativeLibrary

ROOT = Path(__file__).parents[2]
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


@pytest.mark.slow
def test_without_a_compiler_one_warning_and_the_reference(tmp_path):
    warnings, total, _ = finish(start(tmp_path, CXX='g++ "'))
    assert warnings.startswith("1 ") and 'CXX=g++ "' in warnings
    reference = finish(start(tmp_path, LOOKUPFFN_BACKEND="reference"))
    assert (reference[0], reference[1]) == ("0", total)
    assert not list(tmp_path.glob("kernels/*.so"))


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"CXX": "no-such-compiler"}, "no-such-compiler does not exist"),
        ({"CXX": "", "PATH": ""}, "no C++ compiler"),
        ({"CXX": "false"}, "false failed"),
        ({"CXX": 'g++ "'}, "cannot be read as a command line"),
        ({"CXX": "/"}, "does not exist"),
        ({"LOOKUPFFN_CXXFLAGS": "'"}, "LOOKUPFFN_CXXFLAGS=' cannot be read"),
        ({"LOOKUPFFN_CACHE": "/dev/null"}, "cannot write the kernel cache /dev/null/kernels"),
    ],
)
def test_why_there_are_no_kernels(tmp_path, own_cache, monkeypatch, environment, reason):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if not environment.keys() & {"CXX", "PATH"}:
        monkeypatch.setenv("CXX", "false")  # as good as any, where there is no compiler
    library = NativeLibrary(KERNELS.sources)
    with pytest.warns(RuntimeWarning, match=re.escape(reason)):
        assert not library.available()
    assert not list(tmp_path.rglob("*.so"))


def write_sources(folder, body="return 42;"):
    folder.mkdir()
    (folder / "answer.cpp").write_text(f'extern "C" __attribute__((visibility("default"))) int answer() {{ {body} }}')
    return build.Sources("answer", folder)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LOOKUPFFN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels"


@pytest.mark.slow
@pytest.mark.usefixtures("kernels")
def test_several_processes_compile_once(tmp_path):
    write_sources(tmp_path / "csrc")
    script = (
        "import ctypes, pathlib\n"
        "from lookupffn.ops import build\n"
        f"path = build.compiled(build.Sources('answer', pathlib.Path({str(tmp_path / 'csrc')!r})))\n"
        "print(ctypes.CDLL(path).answer())"
    )
    # slow, so that all of them find it under way
    compiler = tmp_path / "compiler"
    compiler.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *answer.cpp*) echo >> {tmp_path}/calls; sleep 5;; esac\n'
        f'exec {" ".join(build.find_compiler())} "$@"\n'
    )
    compiler.chmod(0o755)
    cache = tmp_path / "cache"
    environment = {**os.environ, "CXX": str(compiler), "LOOKUPFFN_CACHE": str(cache)}
    processes = [
        subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [process.communicate(timeout=300)[0] for process in processes] == ["42\n"] * 3
    assert (tmp_path / "calls").read_text() == "\n"
    assert [path.suffix for path in (cache / "kernels").iterdir() if path.is_dir() or path.suffix == ".so"] == [".so"]


@pytest.mark.usefixtures("kernels")
def test_other_sources_are_a_library_of_their_own(tmp_path, own_cache):
    library = NativeLibrary(write_sources(tmp_path / "csrc"), links=(KERNELS,))
    assert library.available() and library.path().parent == own_cache.resolve()
    assert ctypes.CDLL(library.path()).answer() == 42
    (tmp_path / "csrc" / "answer.cpp").write_text("nonsense")
    broken = NativeLibrary(library.sources)
    with pytest.warns(RuntimeWarning, match="nonsense"):
        assert not broken.available()
    assert not broken.available()  # and warns no second time


@pytest.mark.usefixtures("kernels")
def test_a_damaged_library_is_compiled_again(tmp_path, own_cache):
    sources = write_sources(tmp_path / "csrc")
    build.compiled(sources).write_bytes(b"not a library")
    assert ctypes.CDLL(NativeLibrary(sources).path()).answer() == 42


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("unsafe", ["file", "folder", "above", "link"])
def test_what_others_may_write_is_not_loaded(tmp_path, own_cache, unsafe):
    sources = write_sources(tmp_path / "csrc")
    path = build.compiled(sources)
    assert path.parent == own_cache.resolve()
    path.write_bytes(b"planted")
    if unsafe == "file":
        path.chmod(0o722)
    elif unsafe == "folder":
        own_cache.chmod(0o1777)  # the sticky bit keeps nobody from adding a file
    elif unsafe == "above":
        own_cache.parent.chmod(0o777)
    else:
        path.rename(tmp_path / "elsewhere.so")
        path.symlink_to(tmp_path / "elsewhere.so")
    private = build.compiled(sources)
    assert private.parent != own_cache.resolve() and private.parent.stat().st_mode & 0o777 == 0o700
    assert ctypes.CDLL(private).answer() == 42


@pytest.mark.usefixtures("kernels")
def test_what_belongs_to_another_user_is_not_loaded(tmp_path, own_cache, monkeypatch):
    sources = write_sources(tmp_path / "csrc")
    path = build.compiled(sources)
    path.write_bytes(b"planted")
    real = Path.lstat

    def lstat(self):
        status = real(self)
        return status if self != path else os.stat_result((status[0], 1, 1, 1, 12345, *status[5:]))

    monkeypatch.setattr(Path, "lstat", lstat)
    assert "belongs to another user" in ownership.others_may_change(path)
    assert build.compiled(sources).parent != path.parent


def test_a_group_of_ones_own_is_nobody_else(tmp_path):
    tmp_path.chmod(0o770)
    problem = ownership.others_may_change(tmp_path)
    private = ownership._is_private_group(tmp_path.stat().st_gid)
    assert (problem is None) == private


def test_without_sources(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        reason = NativeLibrary(build.Sources("nothing", folder)).unavailable_reason()
        assert str(folder) in reason and "sources" in reason


@pytest.mark.usefixtures("kernels")
def test_the_cache_may_be_removed_while_in_use(tmp_path, own_cache):
    sources = write_sources(tmp_path / "csrc")
    build.compiled(sources)
    shutil.rmtree(own_cache)
    assert ctypes.CDLL(build.compiled(sources)).answer() == 42
