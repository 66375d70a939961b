import os
import signal
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lookupffn.errors import UserError
from lookupffn.runs.folder import member_folder, open_run_folder
from lookupffn.runs.names import default_name
from lookupffn.runs.records import read_config
from tests.training.tiny import compose


def config(**changes) -> dict:
    return {**OmegaConf.to_container(compose("train"), resolve=True), **changes}


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def begin(path: Path) -> None:
    (path / "metrics.jsonl").write_text('{"step": 1}\n')


def finish(path: Path) -> None:
    (path / "summary.json").write_text("{}")


def test_name_follows_what_defines_the_run():
    name = default_name(config())
    assert name.startswith("lookup-tiny-docstrings-seed0-") and len(name.rsplit("-", 1)[1]) == 8
    assert default_name(config(output_dir="x", overwrite=True, cache_dir="y", tracker={"name": "none"})) == name
    assert default_name(config(seed=1)) != name
    assert default_name(config(evaluation={"batch_size": 1, "max_tokens": None})) != name


def test_same_command_goes_on_then_takes_the_next_number():
    first = open_run_folder(config())
    assert first.path == Path("outputs") / default_name(config())
    second = open_run_folder(config())  # the first is alive
    assert second.path.name == f"{first.path.name}-2"
    begin(first.path)
    begin(second.path)
    first.release()
    again = open_run_folder(config())
    assert again.path == first.path
    finish(again.path)
    again.release()
    second.release()
    assert open_run_folder(config()).path == second.path
    assert sorted(p.name for p in first.path.iterdir()) == ["config.yaml", "metrics.jsonl", "summary.json"]


def test_explicit_folder_resumes_what_is_the_same_run():
    folder = open_run_folder(config(output_dir="x"))
    begin(folder.path)
    folder.release()
    longer = config(output_dir="x", cache_dir="elsewhere")
    longer["training"] |= {"max_steps": 3000, "log_every": 7}
    resumed = open_run_folder(longer)
    assert read_config(Path("x"))["training"]["max_steps"] == 6000  # something may still refuse it
    resumed.write_config(longer)
    resumed.release()
    assert read_config(Path("x"))["training"]["max_steps"] == 3000
    other = config(output_dir="x", seed=5)
    other["ffn"]["num_tables"] = 8
    with pytest.raises(UserError, match=r"ffn.num_tables: None, now 8; seed: 0, now 5"):
        open_run_folder(other)
    replaced = open_run_folder({**other, "overwrite": True})
    assert read_config(Path("x"))["seed"] == 5
    replaced.release()


def test_finished_folder_is_kept_unless_told():
    folder = open_run_folder(config(output_dir="x"))
    (folder.path / "metrics.jsonl").write_text("{}\n")
    finish(folder.path)
    folder.release()
    with pytest.raises(UserError, match="x holds a finished run"):
        open_run_folder(config(output_dir="x"))
    assert (folder.path / "metrics.jsonl").exists()
    open_run_folder(config(output_dir="x", overwrite=True))
    assert sorted(p.name for p in folder.path.iterdir()) == [".lock", "config.yaml"]


def test_second_run_in_a_folder_is_refused():
    folder = open_run_folder(config(output_dir="x"))
    with pytest.raises(UserError, match="x is in use by another run"):
        open_run_folder(config(output_dir="x"))
    folder.release()
    open_run_folder(config(output_dir="x")).release()


def test_strange_folders_are_left_alone(tmp_path: Path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="full is not empty and holds no run"):
        open_run_folder(config(output_dir="full", overwrite=True))
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.tex"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot write in file"):
        open_run_folder(config(output_dir="file"))
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"cannot read odd/config.yaml"):
        open_run_folder(config(output_dir="odd"))


def test_sweep_members_have_their_own_folders_and_finished_ones_are_skipped():
    member = config(output_dir="sweep")
    folder = open_run_folder(member, sweep_member=True)
    assert folder.path == Path("sweep") / default_name(member)
    finish(folder.path)
    folder.release()
    assert open_run_folder(member, sweep_member=True) is None
    other = open_run_folder({**member, "seed": 1}, sweep_member=True)
    assert other.path.parent == Path("sweep")


def test_a_run_that_never_began_leaves_no_folder(tmp_path: Path):
    open_run_folder(config()).release()
    open_run_folder(config(output_dir="a/b")).release()
    assert list(tmp_path.iterdir()) == []


def test_folders_from_before_a_refused_run_stay(tmp_path: Path):
    (tmp_path / "outputs").mkdir()
    (tmp_path / "mine" / "empty").mkdir(parents=True)
    open_run_folder(config()).release()
    open_run_folder(config(output_dir="mine/empty")).release()
    open_run_folder(config(output_dir="mine/new/newer")).release()
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == ["mine", "mine/empty", "outputs"]


def test_overwrite_goes_on_only_with_the_same_run_and_a_whole_checkpoint(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lookupffn.runs.folder.newest_checkpoint", lambda folder: found[0]())
    again = config(output_dir="x", overwrite=True)

    def kept(config: dict) -> bool:
        folder = open_run_folder(config)
        result = (folder.path / "metrics.jsonl").exists()
        begin(folder.path)
        folder.release()
        return result

    def damaged() -> None:
        raise UserError("no checkpoint is whole")

    found = [damaged]
    kept(again)
    assert not kept(again)
    found[0] = lambda: None
    assert not kept(again)
    found[0] = lambda: (Path("x"), {})
    assert kept(again)
    assert not kept({**again, "seed": 3})
    (Path("x") / "config.yaml").write_text("a: [")
    assert not kept(again)


def test_overwrite_replaces_the_default_folder():
    first = open_run_folder(config())
    begin(first.path)
    finish(first.path)
    with pytest.raises(UserError, match="in use"):
        open_run_folder(config(overwrite=True))
    first.release()
    again = open_run_folder(config(overwrite=True))
    assert again.path == first.path
    assert sorted(p.name for p in first.path.iterdir()) == [".lock", "config.yaml"]


def test_the_lock_dies_with_its_owner_whatever_its_workers_do():
    ready, done = os.pipe(), os.pipe()
    owner = os.fork()
    if owner == 0:
        folder = open_run_folder(config(output_dir="x"))
        begin(folder.path)
        if os.fork() == 0:  # a worker that outlives it
            os.write(ready[1], b"w")
            os.read(done[0], 1)
            os._exit(0)
        os.write(ready[1], b"o")
        os.read(done[0], 1)
        os._exit(0)
    while len(os.read(ready[0], 1)) and not Path("x/config.yaml").exists():
        pass
    os.read(ready[0], 1)
    with pytest.raises(UserError, match="in use"):
        open_run_folder(config(output_dir="x"))
    os.kill(owner, signal.SIGKILL)
    os.waitpid(owner, 0)
    open_run_folder(config(output_dir="x")).release()
    os.write(done[1], b"x")


def test_a_member_whose_name_is_taken_by_other_settings_gets_the_default_name():
    first = config(output_dir="sweep")
    second = config(output_dir="sweep", evaluation={"batch_size": 64, "max_tokens": None})
    opened = open_run_folder(first, sweep_member=True, differing=["seed"])
    finish(opened.path)
    opened.release()
    assert opened.path == Path("sweep/lookup-seed0")
    assert open_run_folder(first, sweep_member=True, differing=["seed"]) is None
    other = open_run_folder(second, sweep_member=True, differing=["seed"])
    assert other.path == Path("sweep") / default_name(second)
    begin(other.path)
    other.release()
    # and keeps it, also where a version before this one began it so
    assert member_folder(second, ["seed"]) == other.path
    assert member_folder(second, ["evaluation.max_tokens"]) == other.path
