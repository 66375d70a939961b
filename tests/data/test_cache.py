import errno
import multiprocessing
import os
import time

import pytest
from filelock import FileLock

from lookupffn.data import cache
from lookupffn.errors import UserError


def fill(folder):
    (folder / "a.bin").write_bytes(b"content")
    (folder / "b.json").write_text("{}")


def test_built_once(tmp_path):
    entry = tmp_path / "kind" / "key"
    assert cache.ensure_entry(entry, fill, what="a thing")
    assert not cache.ensure_entry(entry, pytest.fail, what="a thing")
    assert sorted(cache.read_manifest(entry)) == ["a.bin", "b.json"]


@pytest.mark.parametrize(
    "harm",
    [
        lambda entry: (entry / "a.bin").write_bytes(b"conten"),
        lambda entry: (entry / "a.bin").write_bytes(b"CONTENT"),
        lambda entry: (entry / "a.bin").unlink(),
        lambda entry: (entry / "manifest.json").write_text("{"),
        lambda entry: (entry / "manifest.json").write_text("[1]"),
        lambda entry: (entry / "manifest.json").unlink(),
    ],
)
def test_damage_is_noticed_and_repaired(tmp_path, caplog, harm):
    entry = tmp_path / "key"
    cache.ensure_entry(entry, fill, what="a thing")
    harm(entry)
    assert cache.ensure_entry(entry, fill, what="a thing")
    assert len(caplog.records) == 1 and "damaged" in caplog.text
    assert cache.damage(entry) is None


def test_full_disk_leaves_the_cache_as_it_was(tmp_path):
    cache.ensure_entry(tmp_path / "other", fill, what="another thing")

    def full(folder):
        (folder / "a.bin").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match=r"cannot write a thing in .*No space left on device") as caught:
        cache.ensure_entry(tmp_path / "key", full, what="a thing")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["other"]


def test_full_disk_in_a_resumed_build_keeps_the_earlier_parts(tmp_path):
    def interrupted(folder):
        (folder / "tokens.bin").write_bytes(b"earlier")
        (folder / "state.json").write_text("1")
        raise KeyboardInterrupt

    def full(folder):
        with open(folder / "tokens.bin", "ab") as file:
            file.write(b" and later")
        (folder / "state.json").write_text("2")
        (folder / "new.bin").write_bytes(b"x")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(KeyboardInterrupt):
        cache.ensure_entry(tmp_path / "key", interrupted, what="a thing", kept_after=(KeyboardInterrupt,))
    with pytest.raises(UserError):
        cache.ensure_entry(tmp_path / "key", full, what="a thing", kept_after=(KeyboardInterrupt,))
    assert {p.name: p.read_bytes() for p in (tmp_path / "key.partial").iterdir()} == {
        "tokens.bin": b"earlier",
        "state.json": b"1",
    }


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write a thing"):
        cache.ensure_entry(tmp_path / "file" / "key", fill, what="a thing")


def _slow_build(entry, log):
    def build(folder):
        fill(folder)
        time.sleep(0.5)
        with open(log, "a") as file:
            file.write("built\n")

    cache.ensure_entry(entry, build, what="a thing")
    assert cache.damage(entry) is None


def test_two_processes_build_once(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_slow_build, args=(tmp_path / "key", tmp_path / "log")) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    assert (tmp_path / "log").read_text() == "built\n"


def _die_with_the_lock(path):
    FileLock(path).acquire()
    path.with_suffix(".partial").mkdir()
    os._exit(9)


def test_the_lock_of_a_dead_process_holds_nobody_up(tmp_path):
    worker = multiprocessing.get_context("fork").Process(target=_die_with_the_lock, args=(tmp_path / "key.lock",))
    worker.start()
    worker.join(30)
    start = time.monotonic()
    assert cache.ensure_entry(tmp_path / "key", fill, what="a thing")
    assert time.monotonic() - start < 3
    assert not (tmp_path / "key.partial").exists()
