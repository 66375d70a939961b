import json

import pytest

from lookupffn import UserError
from tests.scripts.loading import load_script


@pytest.fixture(scope="module")
def script():
    return load_script("benchmark_encoder")


@pytest.mark.slow
def test_candidates_by_turns_and_a_stream(script, tmp_path, capsys):
    path = tmp_path / "encoder.json"
    script.main(
        ["--size", "tiny", "--shapes", "2x8,1x4", "--candidates", "gemm-int8,lookup-float32,eager-bfloat16",
         "--rounds", "2", "--requests", "3", "--json", str(path)]
    )  # fmt: skip
    result = json.loads(path.read_text())
    assert set(result["shapes"]) == {"2x8", "1x4"}
    for shape in result["shapes"].values():
        assert set(shape) == {"eager", "gemm-int8", "lookup-float32", "eager-bfloat16"}
        assert all(0 < t["least"] <= t["ms_25"] <= t["ms"] <= t["ms_75"] for t in shape.values())
    assert set(result["stream"]) == set(result["shapes"]["2x8"])
    assert "gemm-int8" in capsys.readouterr().out


@pytest.mark.slow
def test_measured_in_parts(script, tmp_path):
    """One file holds the shapes of several runs; what was exported in the first is found by the second."""
    path, files = tmp_path / "encoder.json", tmp_path / "files"
    common = ["--size", "tiny", "--rounds", "1", "--json", str(path), "--files", str(files), "--merge"]
    script.main([*common, "--shapes", "1x4", "--candidates", "onnx-float32"])
    before = sorted(files.rglob("*"))
    script.main([*common, "--shapes", "2x8", "--candidates", "onnx-float32,gemm-int8"])
    result = json.loads(path.read_text())
    assert {shape: set(timed) for shape, timed in result["shapes"].items()} == {
        "1x4": {"eager", "onnx-float32"}, "2x8": {"eager", "onnx-float32", "gemm-int8"},
    }  # fmt: skip
    assert sorted(files.rglob("*")) == before != []
    with pytest.raises(UserError, match="of size tiny, not small"):
        script.main([*common, "--size", "small"])
    with pytest.raises(UserError, match="--merge adds to the file of --json"):
        script.main(["--merge"])


def test_an_absent_engine_is_named_and_left_out(script, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    script.main(["--size", "tiny", "--shapes", "1x4", "--candidates", "openvino-int8", "--rounds", "1"])
    assert "left out: openvino-int8 (this needs openvino" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--candidates", "faster"], ["--shapes", "8by128"], ["--shapes", "0x8"]])
def test_mistyped(script, arguments):
    with pytest.raises(UserError):
        script.main(
            ["--size", "tiny", *(arguments if "--candidates" in arguments else ["--candidates", "eager", *arguments])]
        )
