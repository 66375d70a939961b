import logging

import pytest
import torch

from lookupffn import LookupRobertaConfig, LookupRobertaForMaskedLM, UserError, build_ffn
from lookupffn.inference.standard import StandardModel
from lookupffn.layers.ffn.lookup import LookupFFN
from lookupffn.models.initialization import start_as_linear
from lookupffn.models.modeling import attention_projections


def config(**options):
    sizes = {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96, "vocab_size": 90,
        "max_position_embeddings": 40, "type_vocab_size": 1, "pad_token_id": 1, "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0, "attention_projection": "lookup", "attention_tables": 4,
    }  # fmt: skip
    return LookupRobertaConfig(**{**sizes, **options})


def model(**options):
    torch.manual_seed(0)
    return LookupRobertaForMaskedLM(config(**options))


def test_every_projection_is_a_lookup_and_none_counts_as_a_feed_forward():
    m = model()
    for layer in m.base_model.encoder.layer:
        projections = attention_projections(layer.attention)
        assert all(isinstance(p, LookupFFN) and p.options.num_tables == 4 for p in projections)
    assert [ffn.name for ffn in m.feed_forwards()] == ["gemm", "gemm"]
    assert not any(".query.weight" in name for name in m.state_dict())


def test_gradients_reach_tables_and_hash_of_every_projection():
    m = model().train()
    ids = torch.randint(5, 90, (2, 12))
    m(input_ids=ids, labels=ids).loss.backward()
    for layer in m.base_model.encoder.layer:
        for projection in attention_projections(layer.attention):
            for parameter in (projection.table, projection.projection, projection.bias):
                assert parameter.grad is not None and parameter.grad.abs().sum() > 0


@pytest.mark.parametrize("probes", [1, 3])
def test_cost_counts_lookups_in_place_of_the_four_products(probes):
    m, dense = model(attention_probes=probes), model(attention_projection="dense")
    cost = m.cost(sequence_length=32)
    lookup = attention_projections(m.base_model.encoder.layer[0].attention)[0].cost()
    assert cost.parameters == m.num_parameters()
    assert cost.flops_by_part["attention.projections"] == 2 * 4 * lookup.flops
    assert cost.flops_by_part["attention.scores"] == dense.cost(32).flops_by_part["attention.scores"]
    rows_not_read = 2 * 4 * 4 * (256 - probes) * 64
    embeddings = m.cost(32).parameters_touched - dense.cost(32).parameters_touched
    assert embeddings == 2 * 4 * (lookup.parameters - 64 * 65) - rows_not_read


def test_saved_and_loaded(tmp_path):
    m = model(attention_probes=2).eval()
    m.save_pretrained(tmp_path)
    loaded = LookupRobertaForMaskedLM.from_pretrained(tmp_path).eval()
    assert (loaded.config.attention_projection, loaded.config.attention_probes) == ("lookup", 2)
    ids = torch.randint(5, 90, (2, 12))
    assert torch.equal(m(ids).logits, loaded(ids).logits)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_optimised_as_it_stands(precision):
    m = model(attention_init="mimetic").eval()
    ids = torch.randint(5, 90, (3, 12))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    with torch.inference_mode():
        expected = m.base_model(ids, attention_mask=mask)[0][mask.bool()]
        out = m.optimize_for_inference(precision).base_model(ids, attention_mask=mask)[0][mask.bool()]
    # in bfloat16 bits near zero flip
    assert (out - expected).norm() < (1e-4 if precision == "float32" else 0.3) * expected.norm()


def test_int8_falls_back_with_one_line(caplog):
    m = model().eval()
    ids = torch.randint(5, 90, (2, 12))
    with torch.inference_mode(), caplog.at_level(logging.WARNING):
        expected = m(ids).logits
        out = m.optimize_for_inference("int8")(ids).logits
    assert torch.allclose(out, expected, atol=1e-4)
    told = [record.getMessage() for record in caplog.records if "int8 inference" in record.getMessage()]
    assert len(told) == 1 and "attention_projection=lookup has no int8 form" in told[0]


def test_in_standard_operations():
    m = model(attention_init="mimetic", ffn={"name": "lookup", "num_tables": 4}).eval()
    ids = torch.randint(5, 90, (2, 12))
    with torch.inference_mode():
        out = StandardModel(m)(ids, torch.ones_like(ids))
        assert torch.allclose(out, m(ids).logits, atol=1e-4)


@pytest.mark.parametrize("probes", [1, 3])
def test_starts_near_a_linear_map(probes):
    torch.manual_seed(0)
    lookup = build_ffn("lookup", hidden_size=32, out_features=16, num_tables=16, num_probes=probes)
    weight = torch.randn(16, 32)
    start_as_linear(lookup, weight)
    x = torch.randn(500, 32)
    with torch.no_grad():
        y, wanted = lookup(x), x @ weight.t()
    assert (y * wanted).sum() / (y.norm() * wanted.norm()) > 0.75
    assert torch.nn.functional.mse_loss(y, wanted) < 0.5 * wanted.var()


def test_mimetic_start_of_lookups():
    attention = model(attention_init="mimetic", attention_tables=32).base_model.encoder.layer[1].attention
    x = torch.randn(500, 64)
    with torch.no_grad():
        value, query = attention.self.value(x), attention.self.query(x)
    assert torch.nn.functional.cosine_similarity(value.flatten(), x.flatten(), dim=0) > 0.7
    assert torch.nn.functional.cosine_similarity(query.flatten(), x[:, :32].repeat(1, 2).flatten(), dim=0) > 0.7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention_projection": "lokup"}, "did you mean 'lookup'"),
        ({"attention_tables": 0}, "attention_tables must be a whole number"),
        ({"attention_probes": 300}, "num_probes must be from 1 to table_size"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(UserError, match=message):
        config(**options)
