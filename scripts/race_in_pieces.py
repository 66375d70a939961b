"""Runs a race in pieces of ten minutes, also on machines without a network, where nothing may run for longer.

    python scripts/race_in_pieces.py prepare outputs/small experiment=race_small  # once, where there is a network
    python scripts/race_in_pieces.py run outputs/small --minutes 10               # a piece; until it exits with 0

``prepare`` makes a folder with all that the race needs beside the repository and its packages: the packed text and
the tokenizer, files of your own, and the settings. Copy it to any place on the machine that trains, and copy it back
for the results: its runs/ is what compare_runs.py reads. ``run`` goes on where the last piece stopped, and stops in
time for checkpoints to be written. The default corpora are named by the packages of requirements.lock, which both
machines need.

Exit status of ``run``: 0 when every member is finished, 75 when there is more to do, 2 when a member failed (the others
went on), 130 or 143 after a signal, which it hands on.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lookupffn.cli.command_line import compose, composing, quoted, read_command_line, sweep_members
from lookupffn.cli.launch import run_script
from lookupffn.errors import UserError
from lookupffn.runs.names import SUMMARY
from lookupffn.signals import Interrupted
from lookupffn.storage import read_json, to_json, write_atomically

ROOT = Path(__file__).resolve().parents[1]
SETTINGS, CACHE, RUNS, TEXT, TOKENIZER = "race.json", "cache", "runs", "text", "tokenizer"
# of sysexits.h: try again
EXIT_MORE_TO_DO = 75
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "WANDB_MODE": "offline"}
# one checkpoint a member is what a next piece needs; a user's own settings come after these
FRUGAL = ("training.keep_checkpoints=1", "training.keep_best=false")

logger = logging.getLogger("race_in_pieces")


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="prepare | run")
    preparing = commands.add_parser("prepare", help="gather what the race needs in a folder")
    preparing.add_argument("folder", type=Path)
    preparing.add_argument("overrides", nargs="+", help="the race, as for train.py -m")
    preparing.set_defaults(work=lambda a: prepare(a.folder, a.overrides))
    running = commands.add_parser("run", help="train for some minutes")
    running.add_argument("folder", type=Path)
    running.add_argument("--minutes", type=float, default=10.0, help="a piece may take, in all (default: 10)")
    running.add_argument(
        "--reserve", type=float, default=1.0, help="of these minutes, for the last step and checkpoints (default: 1)"
    )
    running.set_defaults(work=lambda a: run(a.folder, a.minutes, a.reserve))
    arguments = parser.parse_args()
    run_script(lambda: arguments.work(arguments))


def prepare(folder: Path, overrides: list[str]) -> None:
    """Gathers text, tokenizer and settings in ``folder``.

    Raises:
        UserError: the folder holds another race, or the race's members train on different text.
    """
    from lookupffn.config.run import read_run, resolve
    from lookupffn.data import prepare_data
    from lookupffn.objectives import MaskedLanguageModelling

    folder = folder.resolve()
    settings: dict[str, Any] = {"overrides": overrides, "files": {}}
    if (folder / SETTINGS).exists() and read_json(folder / SETTINGS)["overrides"] != overrides:
        raise UserError(f"{folder} holds another race: give another folder")
    first, *others = ([o.input_line for o in member] for member in _members(overrides))
    with composing():
        values = resolve(compose("train", first), MaskedLanguageModelling.sections)
    differing = {line.lstrip("+") for member in others for line in {*member} - {*first}}
    sections = {re.split("[.=]", line)[0] for line in differing}
    if values["init_from"]:
        raise UserError("init_from: a race in pieces starts its models anew")
    if shared := sections & {"data", "tokenizer"}:
        raise UserError(f"the members of the race differ in {' and '.join(sorted(shared))}: prepare a race for each")
    config = read_run(values)
    assert config.data is not None
    cache = folder / CACHE
    data = prepare_data(config.data, config.tokenizer, cache)
    # packed by now
    shutil.rmtree(cache / "corpora", ignore_errors=True)
    for key in ("train_files", "validation_files"):
        if files := values["data"].get(key):
            settings["files"][f"data.{key}"] = _copy_files(files, key, folder)
    if config.tokenizer.name == "pretrained":
        data.tokenizer.save_pretrained(folder / TOKENIZER)
        settings["files"]["tokenizer.path"] = TOKENIZER
    settings["members"] = len(others) + 1
    write_atomically(folder / SETTINGS, to_json(settings, indent=1))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    logger.info("%s: %d members, %.0f MB to carry", folder, settings["members"], size / 1e6)


def _members(overrides: list[str]) -> list[list[Any]]:
    return list(sweep_members(read_command_line("train", ["-m", *overrides]).overrides))


def _copy_files(files: str | list[str], key: str, folder: Path) -> list[str]:
    """Copies what a path, a glob or a list names; the copies' paths within ``folder``, in the same order."""
    from lookupffn.data.corpus.files import find_files

    place = Path(TEXT) / key
    (folder / place).mkdir(parents=True, exist_ok=True)
    copies = []
    for number, path in enumerate(find_files(files, f"data.{key}")):
        copies.append(str(place / f"{number:04d}-{path.name}"))
        shutil.copy2(path, folder / copies[-1])
    return copies


def run(folder: Path, minutes: float, reserve: float) -> None:
    """Trains for a piece of the race, and exits as the head of this file says.

    Raises:
        UserError: the folder was not prepared, or the minutes leave no time to train.
    """
    folder = folder.resolve()
    if not (folder / SETTINGS).exists():
        raise UserError(f"{folder} holds no race: make it with race_in_pieces.py prepare {folder} experiment=...")
    if not 0 < reserve < minutes:
        raise UserError(f"--reserve {reserve:g} must be above 0 and below --minutes {minutes:g}")
    settings = read_json(folder / SETTINGS)
    status = _train(_command(folder, settings), 60 * (minutes - reserve), 60 * reserve)
    done = len(list((folder / RUNS).glob(f"*/{SUMMARY}")))
    logger.info("%d of %d members are finished", done, settings["members"])
    if done == settings["members"]:
        return
    stopped = (0, -signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM)
    sys.exit(EXIT_MORE_TO_DO if status in stopped else status)


def _command(folder: Path, settings: dict[str, Any]) -> list[str]:
    places = {"cache_dir": CACHE, "output_dir": RUNS, **settings["files"]}
    here = [f"{key}={_value(folder, place)}" for key, place in places.items()]
    return [sys.executable, str(ROOT / "train.py"), "-m", *FRUGAL, *settings["overrides"], *here]


def _value(folder: Path, place: str | list[str]) -> str:
    if isinstance(place, list):
        return f"[{','.join(quoted(folder / one) for one in place)}]"
    return quoted(folder / place)


def _train(command: list[str], seconds: float, reserve: float) -> int:
    """Runs a command for at most ``seconds``, then stops it within ``reserve``; its exit status."""
    # a group of its own, so that a signal reaches it once, from here
    process = subprocess.Popen(command, env={**os.environ, **OFFLINE}, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return _stop(process, signal.SIGTERM, reserve)
    except KeyboardInterrupt as stop:
        _stop(process, stop.signum if isinstance(stop, Interrupted) else signal.SIGINT, reserve)
        raise
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _stop(process: subprocess.Popen, signum: int, patience: float) -> int:
    process.send_signal(signum)
    try:
        return process.wait(patience)
    except subprocess.TimeoutExpired:
        logger.warning("a step and its checkpoint took longer than --reserve: the last step's work may be lost")
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait()


if __name__ == "__main__":
    main()
