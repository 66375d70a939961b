import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lookupffn import UserError, build_ffn


def reference(ffn, token):
    """Neuron by neuron: i of block g of the first layer is neuron i * groups + g of the second."""
    groups = ffn.options.groups
    inputs, neurons = ffn.weight_in.shape[1:]
    shuffled = [None] * (groups * neurons)
    for g in range(groups):
        hidden = token[g * inputs : (g + 1) * inputs] @ ffn.weight_in[g] + ffn.bias_in[g * neurons : (g + 1) * neurons]
        for i in range(neurons):
            shuffled[i * groups + g] = torch.nn.functional.gelu(hidden[i])
    outputs = [torch.stack(shuffled[g * neurons : (g + 1) * neurons]) @ ffn.weight_out[g] for g in range(groups)]
    return torch.cat(outputs) + ffn.bias_out


@given(groups=st.integers(1, 4), inputs=st.integers(1, 5), neurons=st.integers(1, 7))
def test_matches_the_formula(groups, inputs, neurons):
    ffn = build_ffn("shuffle", hidden_size=groups * inputs, groups=groups, intermediate_size=groups * neurons).double()
    torch.nn.init.normal_(ffn.bias_in)
    torch.nn.init.normal_(ffn.bias_out)
    x = torch.randn(5, groups * inputs, dtype=torch.float64)
    assert torch.allclose(ffn(x), torch.stack([reference(ffn, token) for token in x]))


def test_one_group_is_gemm():
    ffn, gemm = build_ffn("shuffle", hidden_size=6, groups=1), build_ffn("gemm", hidden_size=6)
    with torch.no_grad():
        ffn.weight_in.copy_(gemm.intermediate.weight.T)
        ffn.weight_out.copy_(gemm.output.weight.T)
    x = torch.randn(5, 6)
    assert torch.allclose(ffn(x), gemm(x), atol=1e-6)
    assert ffn.cost().flops == gemm.cost().flops


def test_every_output_sees_every_input():
    ffn = build_ffn("shuffle", hidden_size=16, groups=4, intermediate_size=16)
    jacobian = torch.autograd.functional.jacobian(ffn, torch.randn(16))
    assert (jacobian != 0).all()


def test_starts_with_the_output_variance_of_gemm():
    x = torch.randn(500, 128)
    ours, gemm = build_ffn("shuffle", hidden_size=128)(x), build_ffn("gemm", hidden_size=128)(x)
    assert ours.std().item() == pytest.approx(gemm.std().item(), rel=0.1)


def test_cost_by_hand():
    cost = build_ffn("shuffle", hidden_size=8, groups=2, intermediate_size=12).cost()
    # two blocks of 4 x 6 and two of 6 x 4
    assert (cost.flops, cost.parameters, cost.parameters_touched) == (4 * 2 * 24, 4 * 24 + 12 + 8, 116)


@pytest.mark.parametrize(("sizes", "groups"), [((128, 512), 8), ((48, 100), 4), ((100, 400), 5), ((7, 11), 1)])
def test_default_groups(sizes, groups):
    assert build_ffn("shuffle", hidden_size=sizes[0], intermediate_size=sizes[1]).options.groups == groups


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 3}, "groups 3 does not divide the hidden size 8"),
        ({"groups": 4, "intermediate_size": 6}, "groups 4 does not divide the intermediate_size 6"),
        ({"groups": 0}, "groups must be a whole number of at least 1"),
        ({"intermediate_size": 0}, "intermediate_size must be a whole number of at least 1"),
        ({"hidden_act": "gellu"}, "did you mean 'gelu'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        build_ffn("shuffle", hidden_size=8, **options)
