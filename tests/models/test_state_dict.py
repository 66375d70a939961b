import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, RobertaPreLayerNormConfig, RobertaPreLayerNormForMaskedLM

from lookupffn import LookupRobertaForMaskedLM, UserError
from lookupffn.layers import ffn_names
from lookupffn.models import load_stock_weights
from lookupffn.models.loading import load_model
from lookupffn.models.state_dict import stored_shapes
from tests.models.test_modeling import SIZES, model


def test_gemm_with_the_same_weights_is_the_stock_class():
    tokens = torch.randint(5, 90, (3, 32))
    stock = RobertaPreLayerNormForMaskedLM(RobertaPreLayerNormConfig(**SIZES)).eval()
    ours = model({"name": "gemm"})
    assert load_stock_weights(ours, stock) == ([], [])
    assert torch.equal(ours(tokens).logits, stock(tokens).logits)
    padding = torch.ones_like(tokens)
    padding[:, 20:] = 0
    assert torch.equal(ours(tokens, attention_mask=padding).logits, stock(tokens, attention_mask=padding).logits)


def change(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    for key, value in values.items():
        (config["ffn"] if key in config["ffn"] else config)[key] = value
    (folder / "config.json").write_text(json.dumps(config))


both_ways = pytest.mark.parametrize("load", [load_model, AutoModelForMaskedLM.from_pretrained])


@both_ways
@pytest.mark.parametrize(
    ("ffn", "values", "message"),
    [
        ("gemm", {"intermediate_size": 10**7}, "in the weights and"),
        ("lookup", {"num_tables": 10**7}, "in the weights and"),
        ("slide", {"intermediate_size": 10**7}, "in the weights and"),
        ("lookup", {"max_position_embeddings": 10**8}, "in the weights and"),
        ("lookup", {"num_hidden_layers": 10**6}, "says 1000000 layers, the weights 2"),
        ("gemm", {"num_labels": 10**8}, "num_labels is 100000000"),
        (
            "gemm",
            {"ffn": {"name": "lookup", "num_tables": 10**6}},
            "weights are missing|numbers that the weights do not",
        ),
        ("gemm", {"ffn": {"name": "product_key", "num_keys": 10**5}}, "are missing|numbers that the weights do not"),
    ],
)
def test_a_config_that_asks_for_more_than_the_file_has_is_refused_before_memory_is_spent(
    load, ffn, values, message, tmp_path
):
    import resource

    model({"name": ffn}).save_pretrained(tmp_path)
    change(tmp_path, **values)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=message):
        load(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


@both_ways
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "generation_config.json"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_ordinary_file_is_refused_at_once(load, name, kind, tmp_path):
    model({"name": "gemm"}).save_pretrained(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises((ValueError, OSError), match=r"not an ordinary file|Error no file named|Unrecognized model"):
        load(tmp_path)


@both_ways
def test_a_header_as_large_as_a_million_names_is_refused_unread(load, tmp_path):
    model({"name": "gemm"}).save_pretrained(tmp_path)
    header = json.dumps({"weight": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}).encode()
    header += b" " * 2**23
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError, match="more than any model's of this kind"):
        load(tmp_path)


def test_a_weight_that_is_missing_is_named_before_anything_is_made(tmp_path):
    model({"name": "lookup"}).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    missing = next(name for name in weights if name.endswith("ffn.table"))
    del weights[missing]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights are missing, the first encoder\.layer\.0\.ffn\.table"):
        load_model(tmp_path)


def test_fewer_layers_than_the_file_has_may_be_asked_for_of_transformers(tmp_path):
    saved = model({"name": "gemm"})
    saved.save_pretrained(tmp_path)
    shallow = LookupRobertaForMaskedLM.from_pretrained(tmp_path, num_hidden_layers=1)
    assert len(shallow.feed_forwards()) == 1
    change(tmp_path, num_hidden_layers=1)
    with pytest.raises(UserError, match="says 1 layers, the weights 2"):
        load_model(tmp_path)


def test_shards_are_read_and_do_not_lead_out_of_the_folder(tmp_path):
    saved = model({"name": "gemm"})
    saved.save_pretrained(tmp_path, max_shard_size="20KB")
    shapes = stored_shapes(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert {name: tuple(tensor.shape) for name, tensor in saved.state_dict().items() if name in shapes} == shapes
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], "../elsewhere.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="is not in the folder"):
        stored_shapes(tmp_path)


@pytest.mark.parametrize("name", ffn_names())
def test_what_is_loaded_lies_as_what_is_fresh(name, tmp_path):
    """The same sums round otherwise on memory that is not aligned, and a resumed run would differ."""
    for hidden_size in (32, 44, 72):
        saved = model({"name": name}, hidden_size=hidden_size, num_attention_heads=4)
        saved.save_pretrained(tmp_path)
        loaded = load_model(tmp_path).train()
        assert all(t.data_ptr() % 64 == 0 for t in (*loaded.parameters(), *loaded.buffers()) if t.numel())
        saved.train()
        tokens = torch.randint(5, 90, (4, 32))
        for one in (saved, loaded):
            torch.manual_seed(7)
            sum(one.auxiliary_losses().values(), one(tokens, labels=tokens).loss).backward()
        for mine, theirs in zip(saved.parameters(), loaded.parameters(), strict=True):
            assert (mine.grad is None) == (theirs.grad is None)
            assert mine.grad is None or torch.equal(mine.grad, theirs.grad)
