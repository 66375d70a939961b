import json
import shutil

import pytest

from lookupffn import UserError
from lookupffn.cli import compare
from lookupffn.report.inference_times import read_times
from lookupffn.report.runs import find_runs
from tests.report.synthetic import write_gemm, write_run
from tests.scripts.loading import load_script
from tests.training.tiny import workspace

QUICK = ("--tokens", "40", "--repeat", "1")


@pytest.fixture(scope="module")
def script():
    return load_script("measure_latency")


def entries(path):
    return {entry["ffn"]: entry for entry in json.loads(path.read_text())["variants"]}


@pytest.mark.slow
def test_trained_runs_are_measured_on_their_own_hidden_states(script, tmp_path, tmp_path_factory, capsys):
    space = workspace(tmp_path_factory.getbasetemp())
    for ffn in ("gemm", "lookup"):
        space.train(f"ffn={ffn}", f"output_dir={tmp_path / ffn}")
    latency, out = tmp_path / "latency.json", tmp_path / "out"
    script.main([str(tmp_path), "--output", str(latency), *QUICK])
    found = entries(latency)
    assert found.keys() == {"gemm", "lookup"}
    for entry in found.values():
        assert (entry["weights"], entry["inputs"]) == ("trained", "hidden states")
        assert entry["us_per_token"] > 0 and entry["ratio"] > 0
    assert "hidden states" in capsys.readouterr().out

    compare.run([str(tmp_path), "--output", str(out), "--latency", str(latency)])
    assert (out / "perplexity-cpu.png").exists()

    # the text is gone, and then the model too
    config = tmp_path / "lookup" / "config.yaml"
    config.write_text(config.read_text().replace("validation.txt", "absent.txt"))
    shutil.rmtree(tmp_path / "gemm" / "model")
    script.main([str(tmp_path), "--output", str(latency), *QUICK])
    found = entries(latency)
    assert (found["lookup"]["weights"], found["lookup"]["inputs"]) == ("trained", "random")
    assert (found["gemm"]["weights"], found["gemm"]["inputs"]) == ("new", "random")


def test_a_feed_forward_is_measured_once(script, tmp_path):
    options = {"num_tables": 4, "table_size": 8}
    for name, values in (
        ("a", {"loss": 4.0}),
        ("b", {"loss": 3.0, "lr": 0.1}),
        ("c", {"hidden_size": 64}),
        ("d", {"options": options | {"num_probes": 1}}),
    ):
        write_run(tmp_path / name, **({"options": options} | values))
    write_gemm(tmp_path / "gemm")
    latency = tmp_path / "latency.json"
    script.main([str(tmp_path), "--output", str(latency), *QUICK])
    measured = json.loads(latency.read_text())["variants"]
    assert [entry["run"] for entry in measured] == [str(tmp_path / name) for name in ("b", "c", "d", "gemm")]
    measured = read_times(latency)
    # "a" differs from "b" in what does not change the time
    times = [measured.of(run) for run in find_runs([tmp_path]).runs]
    assert times[0] is times[1] and len({id(time) for time in times}) == 4
    assert "40 tokens a call" in measured.how


@pytest.mark.parametrize("arguments", [["--tokens", "0"], ["--threads", "0"], ["--output", "absent/latency.json"]])
def test_mistakes_are_one_line(script, tmp_path, arguments):
    write_gemm(tmp_path / "gemm")
    with pytest.raises(UserError) as error:
        script.main([str(tmp_path), "--output", str(tmp_path / "latency.json"), *arguments])
    assert "\n" not in str(error.value)
