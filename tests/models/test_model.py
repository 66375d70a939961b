import json

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    RobertaPreLayerNormConfig,
    RobertaPreLayerNormForMaskedLM,
)

from lookupffn import LookupRobertaConfig, LookupRobertaForMaskedLM, LookupRobertaForSequenceClassification, UserError
from lookupffn.layers import ffn_names
from lookupffn.layers.ffn.gemm import GemmFFN
from lookupffn.models import load_stock_weights

SIZES = {
    "vocab_size": 90,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 100,
    "max_position_embeddings": 40,
    "type_vocab_size": 1,
}


def model(ffn, **sizes):
    return LookupRobertaForMaskedLM(LookupRobertaConfig(**SIZES | sizes, ffn=ffn)).eval()


@pytest.fixture
def tokens():
    return torch.randint(5, 90, (3, 32))


@pytest.mark.parametrize("name", ffn_names())
def test_round_trip_is_bit_identical(name, tokens, tmp_path):
    saved = model({"name": name})
    saved.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["ffn"] == saved.config.ffn
    assert AutoConfig.from_pretrained(tmp_path).ffn == saved.config.ffn
    for cls in (LookupRobertaForMaskedLM, AutoModelForMaskedLM):
        loaded = cls.from_pretrained(tmp_path).eval()
        assert isinstance(loaded, LookupRobertaForMaskedLM)
        assert torch.equal(loaded(tokens).logits, saved(tokens).logits)


def test_other_heads_share_the_encoder(tokens, tmp_path):
    saved = model({"name": "lookup", "num_tables": 8})
    saved.save_pretrained(tmp_path)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3).eval()
    assert isinstance(classifier, LookupRobertaForSequenceClassification)
    assert classifier(tokens).logits.shape == (3, 3)
    assert torch.equal(classifier.base_model(tokens)[0], saved.base_model(tokens)[0])


def test_a_parameter_missing_from_a_checkpoint_is_initialised_and_the_rest_kept(tmp_path):
    from safetensors.torch import load_file, save_file

    saved = model({"name": "lookup", "num_tables": 8})
    saved.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    missing = next(name for name in weights if name.endswith("ffn.table"))
    del weights[missing]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = LookupRobertaForMaskedLM.from_pretrained(tmp_path)
    state = loaded.state_dict()
    assert state[missing].std().item() == pytest.approx(0.02, rel=0.1)
    other = missing.replace("ffn.table", "ffn.projection")
    assert torch.equal(state[other], saved.state_dict()[other])


def test_gemm_with_the_same_weights_is_the_stock_class(tokens):
    stock = RobertaPreLayerNormForMaskedLM(RobertaPreLayerNormConfig(**SIZES)).eval()
    ours = model({"name": "gemm"})
    assert load_stock_weights(ours, stock) == ([], [])
    assert torch.equal(ours(tokens).logits, stock(tokens).logits)
    padding = torch.ones_like(tokens)
    padding[:, 20:] = 0
    assert torch.equal(ours(tokens, attention_mask=padding).logits, stock(tokens, attention_mask=padding).logits)


def test_head_runs_on_masked_positions_only(tokens):
    m = model({"name": "lookup", "num_tables": 8})
    positions = torch.stack([torch.randperm(32)[:5].sort().values for _ in range(3)])
    targets = tokens.gather(1, positions)
    labels = torch.full_like(tokens, -100).scatter(1, positions, targets)
    full = m(tokens).logits
    by_position = m(tokens, masked_positions=positions, labels=targets)
    by_label = m(tokens, labels=labels)
    expected = full.gather(1, positions[..., None].expand(-1, -1, 90))
    assert by_position.logits.shape == (3, 5, 90) and by_label.logits.shape == (15, 90)
    assert torch.allclose(by_position.logits, expected, atol=1e-6)
    assert torch.allclose(by_label.logits, expected.flatten(0, 1), atol=1e-6)
    loss = torch.nn.functional.cross_entropy(expected.flatten(0, 1), targets.flatten())
    assert by_position.loss.item() == pytest.approx(loss.item(), rel=1e-6)
    assert by_label.loss.item() == pytest.approx(loss.item(), rel=1e-6)


def test_attention_is_sdpa_and_hidden_states_are_given():
    m = model(None)
    assert m.config._attn_implementation == "sdpa"
    out = m(torch.randint(5, 90, (1, 8)), output_hidden_states=True)
    assert len(out.hidden_states) == 3


def test_same_seed_same_weights():
    def build():
        torch.manual_seed(3)
        return model({"name": "lookup", "num_tables": 8})

    a, b = build(), build()
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_feed_forwards_start_from_their_own_initialisation():
    m = model({"name": "lookup", "num_tables": 8, "projection": "dense"}, hidden_size=64)
    for ffn in m.feed_forwards():
        assert ffn.table.std().item() == pytest.approx(0.02, rel=0.1)
        assert ffn.projection.std().item() == pytest.approx(1 / 8, rel=0.1)


@pytest.mark.parametrize("name", ffn_names())
def test_cost_counts_every_parameter(name):
    m = model({"name": name})
    cost = m.cost(sequence_length=32, mask_rate=0.15)
    assert cost.parameters == m.num_parameters()
    assert cost.flops > m.ffn_cost().flops == sum(ffn.cost().flops for ffn in m.feed_forwards())
    assert m.gemm_ffn_cost().flops == 2 * 4 * 48 * 100
    # attention grows with the sequence, the feed-forward does not
    longer = m.cost(sequence_length=64, mask_rate=0.15)
    assert longer.flops - cost.flops == pytest.approx(2 * 4 * 32 * 48)


def test_sinusoidal_positions_start_alike_and_shift_by_a_rotation():
    m = model(None, position_init="sinusoidal", initializer_range=0.05)
    positions = m.base_model.embeddings.position_embeddings.weight.detach()
    assert positions.std().item() == pytest.approx(0.05, rel=0.2)
    # the inner product of two positions depends on their distance alone
    products = positions @ positions.T
    assert torch.allclose(products.diagonal(3), products.diagonal(3)[0].expand(37), atol=1e-6)


def test_mimetic_attention_starts_among_neighbours():
    sizes = {"hidden_size": 128, "num_attention_heads": 2, "initializer_range": 0.05}
    m = model(None, position_init="sinusoidal", attention_init="mimetic", **sizes)
    attention = m.base_model.encoder.layer[1].attention
    assert torch.equal(attention.self.query.weight, attention.self.key.weight)
    assert torch.allclose(attention.output.dense.weight @ attention.self.value.weight, 0.4 * torch.eye(128))
    assert torch.equal(attention.self.query.weight, torch.eye(128)[:64].repeat(2, 1))
    # with the same token everywhere, a position attends to itself and its neighbours
    m.set_attn_implementation("eager")
    weights = m.eval()(torch.full((1, 30), 5), output_attentions=True).attentions[0][0, 0, 15]
    assert weights[13:18].sum() > 3 * weights[5:10].sum()


def test_every_feed_forward_initialises_itself_in_a_model(monkeypatch):
    """Also one whose parameters all belong to modules inside it, which transformers would initialise by itself."""
    ranges = []
    monkeypatch.setattr(
        GemmFFN, "reset_parameters", lambda self, initializer_range=0.02: ranges.append(initializer_range)
    )
    model({"name": "gemm"}, initializer_range=0.07)
    assert ranges.count(0.07) == 2


def test_gemm_takes_its_width_from_the_model_unless_told():
    assert model({"name": "gemm"}).config.ffn["intermediate_size"] == 100
    assert model({"name": "gemm", "intermediate_size": 7}).config.ffn["intermediate_size"] == 7


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"ffn": {"name": "lokup"}}, "unknown ffn 'lokup': did you mean 'lookup'"),
        ({"ffn": {"name": "lookup", "num_tabels": 8}}, "did you mean 'num_tables'"),
        ({"ffn": {"name": "lookup", "table_size": 100}}, "power of two"),
        ({"ffn": {"num_tables": 8}}, "ffn has no name"),
        ({"position_init": "sinusoid"}, "did you mean 'sinusoidal'"),
        ({"attention_init": "mimic"}, "did you mean 'mimetic'"),
        ({"hidden_size": 50}, "not a multiple of num_attention_heads"),
    ],
)
def test_bad_configurations(sizes, message):
    with pytest.raises(UserError, match=message):
        LookupRobertaConfig(**SIZES | sizes)
