import pytest

from tests.report.synthetic import write_race, write_run
from tests.scripts.loading import SCRIPTS
from tests.training.tiny import run


@pytest.mark.slow
def test_the_script_is_the_command(tmp_path):
    write_race(tmp_path / "runs")
    done = run(str(SCRIPTS / "compare_runs.py"), "runs", "--sort", "perplexity", "--no-plots", cwd=tmp_path)
    assert done.stdout.splitlines()[0] == "tiny-docstrings-6.14M-tokens: runs/comparison"
    assert (tmp_path / "runs" / "comparison" / "table.csv").exists()


@pytest.mark.slow
def test_a_mistake_is_one_line_and_status_2(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", steps=3000)
    done = run(str(SCRIPTS / "compare_runs.py"), "a", "b", "--output", "out", "--strict", cwd=tmp_path, check=False)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("error: these runs cannot be compared: they differ in tokens (6,144,000; 12,288,000)")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
