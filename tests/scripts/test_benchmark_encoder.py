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
