import json
import os

import pytest

from lookupffn import storage
from lookupffn.errors import UserError


def test_fingerprint():
    assert storage.fingerprint(a=1, b=[2]) == storage.fingerprint(b=[2], a=1) != storage.fingerprint(a=1, b=[3])
    assert len(storage.fingerprint()) == 32 and int(storage.fingerprint(), 16) >= 0
    assert json.loads(json.dumps(storage.fingerprint(x="é"))) == storage.fingerprint(x="é")


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("LOOKUPFFN_CACHE", str(tmp_path / "variable"))
    assert storage.cache_root(None) == storage.cache_root() == tmp_path / "variable"
    assert storage.cache_root("~/mine") == tmp_path.home() / "mine"
    monkeypatch.delenv("LOOKUPFFN_CACHE")
    assert storage.cache_root() == tmp_path.home() / ".cache" / "lookupffn"


def test_a_file_is_the_old_one_or_the_whole_new_one(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    storage.write_atomically(path, "old")
    monkeypatch.setattr(os, "replace", lambda *names: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(OSError):
        storage.write_atomically(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_what_is_no_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_text("x" * 11)
    (tmp_path / "bytes").write_bytes(b"\xff")
    for name, message in (
        ("pipe", "not an ordinary file"),
        ("large", "larger than 10 bytes"),
        ("bytes", "not text"),
        ("none", "No such file"),
    ):
        with pytest.raises(UserError, match=message):
            storage.read_text(tmp_path / name, 10)
    with pytest.raises(UserError, match="not an ordinary file"):
        storage.read_text(tmp_path.joinpath("/dev/zero"), 10)
    assert storage.read_text(tmp_path / "bytes", damaged=True) == "\ufffd"


def test_a_folder_is_whole_or_gone(tmp_path):
    final = tmp_path / "model"
    with storage.whole_folder(final, "the model", kept="nothing") as folder:
        (folder / "a").write_text("1")
    digests = storage.digests(final)
    assert storage.altered(final, digests) is None
    with (
        pytest.raises(UserError, match=r"cannot write the model .*your checkpoints are kept: free"),
        storage.whole_folder(final, "the model", kept="your checkpoints are kept") as folder,
    ):
        raise OSError(28, "No space left on device")
    assert storage.altered(final, digests) is None and list(tmp_path.iterdir()) == [final]
    (final / "a").write_text("2")
    assert storage.altered(final, digests) == "a"
