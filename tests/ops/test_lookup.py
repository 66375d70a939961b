import pytest
import torch

from lookupffn.errors import UserError
from lookupffn.ops import hash_scores, lookup, weighted_gather


@pytest.mark.parametrize("num_probes", [1, 2, 3])
def test_is_hash_then_gather(num_probes):
    z, table = torch.randn(9, 4, 5, dtype=torch.float64), torch.randn(4, 32, 7, dtype=torch.float64)
    assert torch.equal(lookup(z, table, num_probes), weighted_gather(table, *hash_scores(z, num_probes)))


def test_gradients_reach_hash_inputs_and_tables():
    z = (0.2 + 0.3 * torch.rand(5, 3, 4, dtype=torch.float64)) * torch.randn(5, 3, 4).sign()
    z += 0.5 * torch.arange(4) * z.sign()
    table = torch.randn(3, 16, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: lookup(a, b, 2), (z.requires_grad_(), table))


def test_refuses_shapes_that_do_not_fit():
    for z, table in [((2, 3, 4), (3, 8, 5)), ((2, 3, 4), (2, 16, 5)), ((2, 12), (3, 16, 5))]:
        with pytest.raises(ValueError, match="do not fit"):
            lookup(torch.zeros(z), torch.zeros(table), 1)


def test_backend_variable(monkeypatch):
    z, table = torch.randn(2, 3, 4), torch.randn(3, 16, 5)
    automatic = lookup(z, table, 1)
    monkeypatch.setenv("LOOKUPFFN_BACKEND", "reference")
    assert torch.allclose(lookup(z, table, 1), automatic)
    monkeypatch.setenv("LOOKUPFFN_BACKEND", "referense")
    with pytest.raises(UserError, match="did you mean 'reference'"):
        lookup(z, table, 1)
