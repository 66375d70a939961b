import numpy as np
import pytest
import torch

from lookupffn import LookupRobertaConfig, LookupRobertaForMaskedLM, LookupRobertaForSequenceClassification, UserError
from lookupffn.inference.export import FILES, export, load
from lookupffn.inference.standard import StandardModel


def model(ffn, cls=LookupRobertaForMaskedLM):
    config = LookupRobertaConfig(
        hidden_size=32, num_attention_heads=2, intermediate_size=48, num_hidden_layers=2, vocab_size=120,
        max_position_embeddings=60, type_vocab_size=1, initializer_range=0.1, ffn=ffn,
    )  # fmt: skip
    return cls(config).eval()


LOOKUPS = [
    {"name": "lookup", "num_tables": 6, "table_size": size, "num_probes": probes, "normaliser": normaliser}
    for size, probes, normaliser in [(16, 1, "all"), (16, 2, "all"), (8, 3, "all"), (64, 4, "all"), (16, 4, "kept")]
] + [{"name": "lookup", "num_tables": 6, "table_size": 4, "num_probes": 4}]


@pytest.mark.parametrize("ffn", [{"name": "gemm"}, {"name": "none"}, {"name": "shuffle"}, *LOOKUPS])
def test_standard_operations_compute_what_the_model_does(ffn):
    plain = model(ffn)
    ids = torch.randint(5, 120, (3, 20))
    ids[1, 12:] = 1
    mask = (ids != 1).long()
    with torch.no_grad():
        expected, out = plain(ids, attention_mask=mask).logits, StandardModel(plain)(ids, mask)
    torch.testing.assert_close(out[mask.bool()], expected[mask.bool()], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("cls", [LookupRobertaForMaskedLM, LookupRobertaForSequenceClassification])
def test_heads_and_hidden_states(cls):
    plain = model({"name": "gemm"}, cls)
    ids = torch.randint(5, 120, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(StandardModel(plain)(ids, torch.ones_like(ids)), plain(ids).logits)
        hidden = plain.base_model(ids).last_hidden_state
        torch.testing.assert_close(StandardModel(plain, head=False)(ids, torch.ones_like(ids)), hidden)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize(
    "format,packages", [("openvino", ["openvino", "nncf"]), ("onnx", ["onnxscript", "onnxruntime"])]
)
def test_engines_run_what_is_written(format, packages, precision, tmp_path):
    for package in packages:
        pytest.importorskip(package)
    plain = model({"name": "lookup", "num_tables": 6, "num_probes": 2})
    batches = [torch.randint(5, 120, (4, 16)) for _ in range(4)]
    folder = tmp_path / "exported"
    error = export(plain, folder, format=format, precision=precision, calibration=batches)
    assert error <= (1e-3 if precision == "float32" else 0.2)
    ids = np.random.default_rng(0).integers(5, 120, (2, 30))  # another shape than it was written with
    out = load(folder / FILES[format])(ids, np.ones_like(ids))
    with torch.no_grad():
        expected = plain(torch.from_numpy(ids)).logits.numpy()
    assert np.linalg.norm(out - expected) <= (1e-3 if precision == "float32" else 0.2) * np.linalg.norm(expected)


def test_more_probes_than_standard_operations_have():
    with pytest.raises(UserError, match="at most 4 probes"):
        StandardModel(model({"name": "lookup", "num_tables": 4, "num_probes": 5}))


def test_an_engine_that_is_not_installed(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    batch = [torch.randint(5, 120, (2, 8))]
    with pytest.raises(UserError, match="pip install openvino"):
        export(model({"name": "gemm"}), tmp_path / "x", format="openvino", precision="float32", calibration=batch)
    assert not list(tmp_path.iterdir())
