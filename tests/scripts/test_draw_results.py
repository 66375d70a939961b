"""The committed tables are what the script draws from the committed runs."""

import csv
import io

import pytest

from lookupffn.report.compare import read_report, tables
from tests.scripts.loading import SCRIPTS, load_script

ROOT = SCRIPTS.parent


def numbers(text):
    """The cells of a CSV, with numbers as numbers."""
    for row in csv.reader(io.StringIO(text)):
        for cell in row:
            try:
                yield float(cell)
            except ValueError:
                yield cell


def test_committed_tables_are_what_is_drawn(monkeypatch):
    monkeypatch.chdir(ROOT)
    script = load_script("draw_results")
    assert script.groups()
    for name in script.groups():
        drawn = tables(read_report([script.RESULTS / "runs" / name], latency=script.latency()))
        committed = {
            path.relative_to(script.RESULTS / name).as_posix(): path.read_text(encoding="utf-8")
            for path in (script.RESULTS / name).rglob("table.*")
        }
        assert drawn.keys() == committed.keys(), name
        for file, text in drawn.items():
            if file.endswith(".md"):
                assert text == committed[file], f"{name}/{file}: run make results"
            else:  # another version of numpy may round a last bit otherwise
                for ours, theirs in zip(numbers(text), numbers(committed[file]), strict=True):
                    assert ours == (pytest.approx(theirs, rel=1e-9) if isinstance(theirs, float) else theirs)


def test_only_the_plots_that_the_docs_show_are_committed():
    shown = "".join(path.read_text(encoding="utf-8") for path in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"])
    kept = [line.removeprefix("!") for line in (ROOT / ".gitignore").read_text().splitlines() if line.startswith("!")]
    plots = [path for path in kept if path.startswith("results/")]
    assert plots and all(path in shown and (ROOT / path).is_file() for path in plots)
