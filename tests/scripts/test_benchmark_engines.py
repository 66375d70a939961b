import json

import pytest

from lookupffn import UserError
from tests.scripts.loading import load_script


@pytest.fixture(scope="module")
def script():
    return load_script("benchmark_engines")


def test_candidates_by_turns(script, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(script, "PAUSE_S", 0)
    monkeypatch.setitem(script.BARS, (32, 4), [("one-probe-float32", "torch-float32", 1.0)])
    monkeypatch.setitem(script.LOOKUPS, "one-probe", {"num_probes": 1})
    path = tmp_path / "folder" / "layer.json"
    names = ["torch-float32", "torch-int8", "one-probe-float32", "default-float32"]
    script.main(
        ["--hidden-size", "32", "--tokens", "1", "4", "--rounds", "2", "--candidates", ",".join(names), "--json",
         str(path)]
    )  # fmt: skip
    results = json.loads(path.read_text())["results"]
    assert [(r["hidden_size"], r["tokens"]) for r in results] == [(32, 1), (32, 4)]
    for result in results:
        assert list(result["times"]) == names
        assert all(0 < t["us_25"] <= t["us_per_token"] <= t["us_75"] for t in result["times"].values())
    assert "times as fast as torch-float32 (bar 1.0)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "package"), [("openvino-int8", "openvino"), ("onnx-int8", "onnxruntime.quantization")]
)
def test_an_absent_engine_is_named_and_left_out(script, monkeypatch, capsys, name, package):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    script.main(["--hidden-size", "32", "--tokens", "1", "--candidates", name, "--rounds", "1"])
    assert f"left out: {name} (this needs" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--candidates", "faster"], ["--tokens", "0"], ["--rounds", "0"]])
def test_mistyped(script, arguments):
    with pytest.raises(UserError):
        script.main(["--hidden-size", "32", *arguments])
