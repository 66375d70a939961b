import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import RobertaPreLayerNormConfig
from transformers.models.roberta_prelayernorm.modeling_roberta_prelayernorm import RobertaPreLayerNormAttention

from lookupffn import build_ffn, cost


def counted(module, *args):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*args)
    return counter.get_total_flops()


def test_the_papers_size():
    gemm = build_ffn("gemm", hidden_size=512, intermediate_size=2048).cost()
    lookup = build_ffn(
        "lookup", hidden_size=512, num_tables=128, table_size=256, projection="bh4", block_size=64, num_probes=1
    ).cost()
    assert gemm.flops == 4 * 512 * 2048
    assert lookup.flops == pytest.approx(0.69e6, rel=0.02)
    assert gemm.flops / lookup.flops > 6


@pytest.mark.parametrize(("d", "m"), [(8, 32), (48, 100)])
def test_gemm_against_torchs_counter(d, m):
    module = build_ffn("gemm", hidden_size=d, intermediate_size=m)
    assert module.cost().flops * 7 == counted(module, torch.randn(7, d))


def test_dense_projection_against_torchs_counter():
    module = build_ffn("lookup", hidden_size=24, num_tables=5, table_size=8, projection="dense")
    assert module.cost().flops_by_part["projection"] * 7 == counted(lambda x: module.hash_inputs(x), torch.randn(7, 24))


def test_block_products_against_torchs_counter(monkeypatch):
    monkeypatch.setenv("LOOKUPFFN_BACKEND", "reference")  # torch does not count inside the C++ kernels
    # one block per copy: no transform across blocks remains, and torch counts the folding of weights apart
    d, b, M = 16, 16, 7
    module = build_ffn("lookup", hidden_size=d, num_tables=8, table_size=16, block_size=b)
    folding = module.copies * 4 * 2 * b**3
    mix = module.copies * 2 * d
    assert (module.cost().flops_by_part["projection"] - mix) * M + folding == counted(
        lambda x: module.hash_inputs(x), torch.randn(M, d)
    )


@pytest.mark.parametrize("L", [5, 64])
def test_attention_against_torchs_counter(L):
    config = RobertaPreLayerNormConfig(hidden_size=32, num_attention_heads=4)
    config._attn_implementation = "eager"
    attention = RobertaPreLayerNormAttention(config).eval()
    assert cost.attention(32, L).flops * L * 2 == counted(attention, torch.randn(2, L, 32))


def test_finding_the_probes_counts_the_scores_they_are_chosen_from():
    # for each of 8 bits 3; for each probe 2, after the first 4; the second is the smallest of 8 bits
    assert cost.hash_codes(num_tables=1, bits=8, num_probes=1) == {"hash": 24 + 2}
    assert cost.hash_codes(num_tables=1, bits=8, num_probes=2) == {"hash": 24 + 6 + 8}
    # from the third bit on, the best 4 of 8
    assert cost.hash_codes(num_tables=5, bits=8, num_probes=4) == {"hash": 5 * (24 + 14 + 6 * 8)}


def test_addition_and_scaling():
    a, b = cost.linear(3, 4), cost.of({"linear": 1, "other": 2}, 10, touched=5)
    both = cost.total([a.scaled(2), b])
    assert both.flops_by_part == {"linear": 2 * 24 + 1, "other": 2}
    assert (both.parameters, both.parameters_touched, both.bytes) == (42, 37, 4 * 37)
    assert set(both.prefixed("x").flops_by_part) == {"x.linear", "x.other"}
