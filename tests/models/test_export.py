"""torch.export and ONNX of the reference path: any batch and length, and the same numbers when reloaded."""

import numpy as np
import pytest
import torch

from lookupffn import LookupRobertaConfig, LookupRobertaForMaskedLM

SIZES = {
    "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "max_position_embeddings": 66, "pad_token_id": 1,
}  # fmt: skip
FFNS = [{"name": "gemm"}, {"name": "lookup", "num_tables": 4, "table_size": 16, "block_size": 8}, {"name": "shuffle"}]


class LogitsOf(torch.nn.Module):
    """A model with tensors in and a tensor out."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids, attention_mask).logits


def model_and_inputs(ffn, batch, length):
    torch.manual_seed(0)
    model = LookupRobertaForMaskedLM(LookupRobertaConfig(**SIZES, ffn=ffn)).eval()
    input_ids = torch.randint(5, 60, (batch, length))
    attention_mask = torch.ones_like(input_ids)
    attention_mask[0, length // 2 :] = 0
    input_ids[0, length // 2 :] = 1
    return LogitsOf(model), (input_ids, attention_mask)


@pytest.fixture(autouse=True)
def reference(monkeypatch):
    monkeypatch.setenv("LOOKUPFFN_BACKEND", "reference")


def exported(ffn):
    module, inputs = model_and_inputs(ffn, 3, 9)
    dynamic = {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("length", min=2, max=64)}
    return torch.export.export(module, inputs, dynamic_shapes=(dynamic, dynamic))


@pytest.mark.slow
@pytest.mark.parametrize("ffn", FFNS, ids=lambda ffn: ffn["name"])
def test_torch_export(ffn, tmp_path):
    torch.export.save(exported(ffn), tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for batch, length in ((3, 9), (2, 30), (5, 4)):
        module, inputs = model_and_inputs(ffn, batch, length)
        with torch.inference_mode():
            torch.testing.assert_close(loaded(*inputs), module(*inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("ffn", FFNS, ids=lambda ffn: ffn["name"])
def test_onnx(ffn, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.onnx.export(exported(ffn), f=tmp_path / "model.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for batch, length in ((3, 9), (2, 30)):
        module, inputs = model_and_inputs(ffn, batch, length)
        names = [value.name for value in session.get_inputs()]
        found = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)})[0]
        with torch.inference_mode():
            np.testing.assert_allclose(found, module(*inputs).numpy(), rtol=1e-4, atol=1e-4)
