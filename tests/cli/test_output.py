"""What becomes of a command whose output nobody reads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.tiny import ROOT

SCRIPT = r"""
import logging, sys
from pathlib import Path
from lookupffn.cli.launch import run_main
def main(cfg):
    logging.getLogger(__name__).info("begun in %s", cfg.output_dir)
    Path(str(cfg.output_dir)).write_text("config " + str(cfg.output_dir), encoding="utf-8")
    sys.stdout.write("a table\n" * 20000)
    sys.stdout.flush()
    print(cfg.output_dir)
run_main("train", main)
"""


def shell(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    (folder / "script.py").write_text(SCRIPT)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHON": sys.executable, **environment}
    return subprocess.run(["bash", "-c", command], cwd=folder, env=env, capture_output=True, timeout=120)


@pytest.mark.parametrize(
    "command",
    [
        "$PYTHON script.py output_dir=out >&-",
        "$PYTHON script.py output_dir=out 2>&-",
        "$PYTHON script.py output_dir=out <&- >&- 2>&-",
        "set -o pipefail; $PYTHON script.py output_dir=out | head -1",
        "set -o pipefail; $PYTHON script.py output_dir=out 2>&1 >/dev/null | true",
    ],
)
def test_a_run_ends_well_without_a_reader(command: str, tmp_path: Path):
    done = shell(command, tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    # not a word of the log in it: a closed stream's number must not go to a file
    assert (tmp_path / "out").read_text() == "config out"
    assert b"Traceback" not in done.stderr and b"Exception" not in done.stderr


def test_a_mistake_without_a_reader_keeps_its_status(tmp_path: Path):
    assert shell("$PYTHON script.py ffn=lokup 2>&-", tmp_path).returncode == 2


@pytest.mark.parametrize(
    "locale",
    [
        {"LC_ALL": "C"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "ascii"},
    ],
)
def test_letters_that_the_locale_does_not_have(locale: dict, tmp_path: Path):
    done = shell("$PYTHON script.py output_dir=läufe", tmp_path, **locale)
    assert done.returncode == 0, done.stderr.decode()
    assert (tmp_path / "läufe").read_text(encoding="utf-8") == "config läufe"
