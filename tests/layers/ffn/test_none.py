import torch

from lookupffn import build_ffn
from lookupffn.cost import Cost


def test_adds_nothing_and_costs_nothing():
    ffn = build_ffn("none", hidden_size=8)
    assert not list(ffn.parameters()) and ffn.cost() == Cost()
    assert torch.equal(ffn(torch.randn(3, 8)), torch.zeros(3, 8))


def test_what_comes_before_it_gets_a_gradient_of_zero():
    norm = torch.nn.LayerNorm(8)
    build_ffn("none", hidden_size=8)(norm(torch.randn(3, 8))).sum().backward()
    assert all(torch.equal(parameter.grad, torch.zeros(8)) for parameter in norm.parameters())
