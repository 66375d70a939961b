import pytest
import torch

from lookupffn import UserError, build_ffn
from lookupffn.layers import resolve_options


def test_matches_the_formula():
    ffn = build_ffn("low_rank", hidden_size=6, rank=3, hidden_act="relu")
    torch.nn.init.normal_(ffn.intermediate.bias)
    torch.nn.init.normal_(ffn.output.bias)
    first, second = ffn.intermediate, ffn.output
    x = torch.randn(4, 6)
    expected = torch.stack(
        [second.weight @ (first.weight @ token + first.bias).clamp(min=0) + second.bias for token in x]
    )
    assert torch.allclose(ffn(x), expected, atol=1e-6)


@pytest.mark.parametrize("hidden_size", [32, 128, 512])
def test_default_costs_what_the_default_lookup_costs(hidden_size):
    lookup = build_ffn("lookup", hidden_size=hidden_size).cost().flops
    ffn = build_ffn("low_rank", hidden_size=hidden_size)
    assert ffn.cost().flops <= lookup
    assert build_ffn("low_rank", hidden_size=hidden_size, rank=ffn.options.rank + 1).cost().flops > lookup


def test_finding_the_default_rank_draws_nothing():
    before = torch.get_rng_state()
    resolve_options("low_rank", 32, {})
    assert torch.equal(torch.get_rng_state(), before)


def test_cost_by_hand():
    cost = build_ffn("low_rank", hidden_size=10, rank=3).cost()
    assert (cost.flops, cost.parameters, cost.parameters_touched) == (2 * 2 * 30, 60 + 13, 73)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank must be a whole number of at least 1"),
        ({"rank": 1.5}, "rank must be a whole number"),
        ({"hidden_act": "gellu"}, "ffn 'low_rank': hidden_act 'gellu': did you mean 'gelu'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        build_ffn("low_rank", hidden_size=8, **options)
