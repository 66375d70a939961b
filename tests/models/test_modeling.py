import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForMaskedLM

from lookupffn import LookupRobertaConfig, LookupRobertaForMaskedLM, UserError
from lookupffn.layers import ffn_names
from lookupffn.layers.ffn.gemm import GemmFFN

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


def test_mimetic_attention_starts_at_one_neighbour_a_head():
    sizes = {"hidden_size": 128, "num_attention_heads": 4, "initializer_range": 0.05}
    m = model(None, position_init="sinusoidal", attention_init="mimetic", **sizes)
    attention = m.base_model.encoder.layer[1].attention
    assert torch.allclose(attention.output.dense.weight @ attention.self.value.weight, 0.4 * torch.eye(128))
    # with the same token everywhere, each head attends most to the token at its own distance
    m.set_attn_implementation("eager")
    weights = m.eval()(torch.full((1, 30), 5), output_attentions=True).attentions[0][0, :, 15]
    assert (weights.argmax(-1) - 15).tolist() == [-1, 1, -2, 2]


def test_the_head_starts_as_a_layer_norm():
    x = torch.randn(20, 48)
    for start, low, high in (("identity", 0.95, 1), ("normal", -0.3, 0.3)):
        head = model(None, head_init=start).lm_head
        expected = torch.nn.functional.layer_norm(x, (48,)) @ head.decoder.weight.T
        both = torch.stack([head(x).flatten(), expected.flatten()]).detach()
        assert low < torch.corrcoef(both)[0, 1] < high


def test_mimetic_attention_without_sinusoids_compares_tokens_with_themselves():
    m = model(None, hidden_size=128, num_attention_heads=2, attention_init="mimetic")
    attention = m.base_model.encoder.layer[1].attention
    assert torch.equal(attention.self.query.weight, attention.self.key.weight)
    assert torch.equal(attention.self.query.weight, torch.eye(128)[:64].repeat(2, 1))


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
        ({"head_init": "identities"}, "did you mean 'identity'"),
        ({"hidden_size": 50}, "not a multiple of num_attention_heads"),
        ({"chunk_size_feed_forward": -1}, "chunk_size_feed_forward must be 0"),
        ({"chunk_size_feed_forward": True}, "chunk_size_feed_forward must be 0"),
        ({"chunk_size_feed_forward": "4"}, "chunk_size_feed_forward must be 0"),
        ({"num_labels": 10**8}, "num_labels is 100000000"),
    ],
)
def test_bad_configurations(sizes, message):
    with pytest.raises(UserError, match=message):
        LookupRobertaConfig(**SIZES | sizes)


@pytest.mark.parametrize("name", ["lookup", "switch"])
@pytest.mark.parametrize("chunk", [1, 5, 32, 100])
def test_chunks_of_any_size_change_nothing(name, chunk, tokens):
    whole = model({"name": name})
    cut = model({"name": name}, chunk_size_feed_forward=chunk)
    cut.load_state_dict(whole.state_dict())
    assert torch.allclose(cut(tokens).logits, whole(tokens).logits, atol=1e-5)
    # in training a chunk would be routed, and its auxiliary loss counted, by itself
    cut.train()(tokens, labels=tokens).loss.backward()


@pytest.mark.parametrize("name", ffn_names())
def test_on_the_meta_device_there_are_shapes_and_costs(name, tokens):
    m = model({"name": name})
    flops = m.cost(32).flops
    m = m.to("meta")
    assert m.cost(32).flops == flops
    for mode in (True, False):
        assert m.train(mode)(tokens.to("meta")).logits.shape == (3, 32, 90)


def test_a_sequence_beyond_the_positions_is_refused_in_one_line():
    m = model(None)
    with pytest.raises(UserError, match="39 tokens is longer than the model's 38 positions"):
        m(torch.randint(5, 90, (1, 39)))
    with pytest.raises(UserError, match="38 positions"):
        m(inputs_embeds=torch.zeros(1, 39, 48))
    # padding, at RoBERTa's, takes no position
    padded = torch.cat([torch.randint(5, 90, (1, 38)), torch.ones(1, 4, dtype=torch.long)], 1)
    assert m(padded).logits.shape == (1, 42, 90)
