import json
import os
import pickle
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError

from lookupffn.distributed.sharding import full_state, load_full_state
from lookupffn.errors import UserError
from lookupffn.runs.checkpoint import (
    METADATA_FILE,
    STATE_FILE,
    amend_checkpoint,
    list_checkpoints,
    load_state,
    newest_checkpoint,
    remove_partial,
    save_checkpoint,
    sealed,
    verify_checkpoint,
)
from lookupffn.storage import digests


class Writes:
    """Stands for a model or a tokenizer."""

    def __init__(self, name: str, fail: bool = False) -> None:
        self.name, self.fail = name, fail
        self.config = SimpleNamespace(max_positions=16)

    def save_pretrained(self, folder: Path) -> None:
        (folder / self.name).write_text(self.name)
        if self.fail:
            raise OSError(28, "No space left on device")


def save(folder: Path, step: int, keep: int = 2, fail: bool = False) -> Path:
    state = {"optimizer": {"state": {0: torch.ones(3)}}, "scaler": None}
    return save_checkpoint(
        folder, step, model=Writes("model.safetensors", fail), tokenizer=Writes("tokenizer.json"),
        state=state, metadata={"tokens": 7}, keep=keep,
    )  # fmt: skip


def test_round_trip_and_keeping_the_last(tmp_path: Path):
    for step in (5, 10, 100, 123456789):
        path = save(tmp_path, step)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000100", "step-123456789"]
    found, metadata = newest_checkpoint(tmp_path)
    assert found == path and metadata["step"] == 123456789 and metadata["tokens"] == 7
    assert torch.equal(load_state(path)["optimizer"]["state"][0], torch.ones(3))


def test_no_checkpoints(tmp_path: Path):
    assert newest_checkpoint(tmp_path / "nowhere") is None


def test_failed_write_leaves_the_last_good_one(tmp_path: Path):
    save(tmp_path, 1, keep=1)
    with pytest.raises(
        UserError, match=r"No space.*full or not writable. The last checkpoint \(step-00000001\) is kept"
    ):
        save(tmp_path, 2, keep=1, fail=True)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    verify_checkpoint(tmp_path / "step-00000001")


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"), True),
        (SafetensorError("Error while serializing: I/O error: File too large (os error 27)"), True),
        (Exception("No space left on device (os error 28)"), True),
        (RuntimeError("a mistake of ours"), False),
    ],
)
def test_only_a_disk_that_refuses_is_called_full(
    error: Exception, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(torch, "save", fail)
    expected = r"full or not writable. No checkpoint had been written yet" if refused else "a mistake of ours"
    with pytest.raises(UserError if refused else RuntimeError, match=expected) as caught:
        save(tmp_path, 1)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_kill_are_cleared(tmp_path: Path):
    (tmp_path / ".step-00000007.partial").mkdir()
    save(tmp_path, 1)
    (tmp_path / ".summary.json.123.partial").write_text("{")
    remove_partial(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "no metadata", "odd metadata", "escape"])
def test_damage_is_noticed(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    state, metadata = path / STATE_FILE, path / METADATA_FILE
    if damage == "flip":
        content = bytearray(state.read_bytes())
        content[len(content) // 2] ^= 1
        state.write_bytes(content)
    elif damage == "truncate":
        state.write_bytes(state.read_bytes()[:-1])
    elif damage == "delete":
        state.unlink()
    elif damage == "no metadata":
        metadata.unlink()
    elif damage == "odd metadata":
        metadata.write_text(json.dumps({"step": "2", "sha256": []}))
    else:
        document = json.loads(metadata.read_text())
        document["sha256"] |= {"../step-00000001/model.safetensors": "0"}
        metadata.write_text(json.dumps(document))
    with pytest.raises(UserError, match="damaged checkpoint"):
        verify_checkpoint(path)
    assert newest_checkpoint(tmp_path)[0].name == "step-00000001"
    assert "trying the one before it" in caplog.text


def test_state_of_something_else_is_refused(tmp_path: Path):
    torch.save([1, 2], tmp_path / STATE_FILE)
    with pytest.raises(UserError, match="is not the state of a training"):
        load_state(tmp_path)

    def adamw(*sizes: int) -> torch.optim.AdamW:
        parameters = [torch.nn.Parameter(torch.ones(size)) for size in sizes]
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        optimizer = torch.optim.AdamW(parameters)
        optimizer.step()
        return optimizer

    state = full_state(adamw(3, 4), keep=True)
    load_full_state(adamw(3, 4), state)
    for other in (adamw(3, 5), adamw(3), adamw(3, 4, 5)):
        with pytest.raises(UserError, match="the optimizer's state is not that of this model"):
            load_full_state(other, state)


def test_metadata_can_be_amended(tmp_path: Path):
    path = save(tmp_path, 3)
    amend_checkpoint(path, {"tokens": 8, "best": {"step": 3}})
    assert verify_checkpoint(path)["tokens"] == 8
    (path / METADATA_FILE).write_text((path / METADATA_FILE).read_text().replace('"tokens": 8', '"tokens": 9'))
    with pytest.raises(UserError, match=r"checkpoint\.json is not what was written"):
        verify_checkpoint(path)


def test_state_that_runs_code_is_refused(tmp_path: Path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / STATE_FILE).write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(UserError, match="cannot be read"):
        load_state(tmp_path)
    torch.save({"optimizer": Evil()}, tmp_path / STATE_FILE)
    with pytest.raises(UserError, match="cannot be read"):
        load_state(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_strange_states_are_refused_before_they_are_read(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / STATE_FILE, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("state/data.pkl", b"\0" * 10_000_000)
    assert (tmp_path / STATE_FILE).stat().st_size < 100_000
    with pytest.raises(UserError, match=r"training_state.pt cannot be read \(it is compressed"):
        load_state(tmp_path)
    (tmp_path / STATE_FILE).write_bytes(b"\x80\x04.")
    with pytest.raises(UserError, match=r"training_state.pt cannot be read \(File is not a zip file"):
        load_state(tmp_path)


@pytest.mark.parametrize("name", [METADATA_FILE, STATE_FILE])
def test_pipes_and_devices_in_a_checkpoint(name: str, tmp_path: Path):
    (tmp_path / STATE_FILE).write_bytes(b"x")
    (tmp_path / METADATA_FILE).write_text(sealed({"step": 1, "sha256": digests(tmp_path)}))
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(UserError, match="damaged checkpoint"):
        verify_checkpoint(tmp_path)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match="damaged checkpoint"):
        verify_checkpoint(tmp_path)
