import pytest

from tests.report.synthetic import write_race, write_run
from tests.scripts.loading import SCRIPTS, load_script
from tests.training.tiny import run


@pytest.fixture(scope="module")
def script():
    return load_script("compare_runs")


def test_compares_and_prints(script, tmp_path, capsys):
    write_race(tmp_path / "runs")
    script.main([str(tmp_path / "runs"), "--output", str(tmp_path / "out"), "--sort", "perplexity"])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"tiny-docstrings-6.14M-tokens: {tmp_path / 'out'}"
    assert printed[2].split()[:3] == ["lookup,", "num_tables", "32"]
    assert (tmp_path / "out" / "table.csv").exists()


def test_a_mistake_is_one_line_and_status_2(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", steps=3000)
    done = run(str(SCRIPTS / "compare_runs.py"), "a", "b", "--output", "out", "--strict", cwd=tmp_path, check=False)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("error: these runs cannot be compared: they differ in tokens (6,144,000; 12,288,000)")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
