import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lookupffn import UserError, build_ffn
from lookupffn.ops.gather import sort_reads, sum_by_row


def reference(ffn, x):
    """Token by token, tree by tree, from the root down; also the leaves reached."""
    outputs, leaves = [], []
    for token in x:
        y = torch.zeros_like(token)
        for tree in range(ffn.options.trees):
            biases = ffn.bias_in.view(ffn.options.trees, -1)[tree]
            node = 0
            for _ in range(ffn.options.depth + 1):
                logit = ffn.weight_in[tree, node] @ token + biases[node]
                y = y + torch.nn.functional.gelu(logit) * ffn.weight_out[tree, node]
                last, node = node, 2 * node + (2 if logit > 0 else 1)
            leaves.append((tree, last))
        outputs.append(y)
    return torch.stack(outputs), leaves


@given(d=st.integers(1, 20), depth=st.integers(0, 5), trees=st.integers(1, 4))
def test_outputs_and_gradients_match_the_formula(d, depth, trees):
    ffn = build_ffn("fff", hidden_size=d, depth=depth, trees=trees).double()
    x = torch.randn(6, d, dtype=torch.float64, requires_grad=True)
    y, (expected, _) = ffn(x), reference(ffn, x)
    assert torch.allclose(y, expected)
    upstream = torch.randn_like(y)
    variables = (x, *ffn.parameters())
    for a, b in zip(
        torch.autograd.grad(y, variables, upstream), torch.autograd.grad(expected, variables, upstream), strict=True
    ):
        assert torch.allclose(a, b)


@pytest.mark.parametrize("longest", [1, 3, 1000])
def test_sums_in_parts_are_the_sums(longest):
    rows = torch.tensor([[5, 5, 2], [5, 5, 5], [5, 2, 7]])
    weights, x = torch.randn(3, 3, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    reads = sort_reads(rows, 9)
    assert torch.allclose(sum_by_row(*reads, weights, x, longest), sum_by_row(*reads, weights, x))


def test_no_tokens_have_gradients_of_zero():
    ffn = build_ffn("fff", hidden_size=8, depth=3)
    ffn(torch.zeros(0, 8)).sum().backward()
    assert not any(parameter.grad.any() for parameter in ffn.parameters())


def test_depth_of_about_gemms_neurons():
    assert build_ffn("fff", hidden_size=768).options.depth == 11  # UltraFastBERT-1x11
    assert build_ffn("fff", hidden_size=128).options.depth == 8


def test_initialisation_is_the_authors():
    ffn = build_ffn("fff", hidden_size=64, depth=7, trees=2)
    assert ffn.weight_in.abs().max().item() == pytest.approx(1 / 8, rel=0.01)
    assert ffn.weight_out.abs().max().item() == pytest.approx(1 / 4, rel=0.01)


def test_statistics_are_of_the_leaves_reached_in_evaluation():
    ffn = build_ffn("fff", hidden_size=8, depth=3, trees=2).eval()
    assert ffn.statistics() == {}
    x = torch.randn(5, 8)
    ffn(x)
    ffn.collect_statistics(True)
    ffn.train()(x)
    assert ffn.statistics() == {}
    ffn.eval()(x[:2])
    ffn(x[2:])
    _, leaves = reference(ffn, x)
    statistics = ffn.statistics()
    assert statistics["leaves_visited"] == len(set(leaves)) / 16
    entropy = -sum((n := leaves.count(leaf)) / 5 * torch.tensor(n / 5).log2().item() for leaf in set(leaves)) / 2
    assert statistics["code_entropy_bits"] == pytest.approx(entropy, abs=1e-6)
    ancestors = {(tree, node) for tree, leaf in leaves for node in (leaf, (leaf - 1) // 2, (leaf - 3) // 4, 0)}
    assert statistics["neurons_visited"] == len(ancestors) / 30
    ffn.collect_statistics(False)
    ffn(x)
    assert ffn.statistics() == statistics


def test_cost_by_hand():
    cost = build_ffn("fff", hidden_size=10, depth=3, trees=2).cost()
    # 2 trees of 15 neurons, 4 of each computed; a neuron has 10 inputs, a bias and 10 outputs
    assert cost.flops_by_part == {"path": 8 * 20, "gather": 8 * 20}
    assert (cost.parameters, cost.parameters_touched) == (30 * 21, 8 * 21)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": -1}, "depth must be a whole number from 0 to 20 or null, not -1"),
        ({"depth": 21}, "depth must be a whole number from 0 to 20"),
        ({"trees": 0}, "trees must be a whole number of at least 1"),
        ({"depth": 2.5}, "depth must be a whole number"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        build_ffn("fff", hidden_size=8, **options)
