import logging

import pytest
import torch

from lookupffn import build_ffn
from lookupffn.errors import UserError
from lookupffn.ops import backend, lookup
from tests.ops.test_gather import transcription as gather_transcription
from tests.ops.test_hash import transcription as hash_transcription


@pytest.mark.parametrize("num_probes", [1, 2, 3])
def test_against_the_formula(num_probes):
    z, table = torch.randn(9, 4, 5, dtype=torch.float64), torch.randn(4, 32, 7, dtype=torch.float64)
    codes, scores = hash_transcription(z, num_probes)
    assert torch.allclose(lookup(z, table, num_probes), gather_transcription(table, codes, scores))


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


@pytest.mark.usefixtures("kernels")
def test_a_backend_for_a_block(monkeypatch):
    ffn, x = build_ffn("lookup", hidden_size=32, num_probes=5), torch.randn(9, 32)
    monkeypatch.setenv("LOOKUPFFN_BACKEND", "cpu")
    with backend.forced_backend("reference"):
        with pytest.raises(UserError, match="5 probes"), backend.forced_backend("cpu"):
            ffn(x)
        ffn(x)
    with pytest.raises(UserError, match="5 probes"):
        ffn(x)


@pytest.mark.usefixtures("kernels")
def test_the_cpu_backend_trains(monkeypatch):
    ffn = build_ffn("lookup", hidden_size=32)
    x = torch.randn(9, 32)
    gradients = {}
    for name in ("cpu", "reference"):
        monkeypatch.setenv("LOOKUPFFN_BACKEND", name)
        gradients[name] = torch.autograd.grad(ffn(x).square().sum(), list(ffn.parameters()))
    for got, expected in zip(gradients["cpu"], gradients["reference"], strict=True):
        assert torch.allclose(got, expected, atol=1e-4)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    ("options", "reason"),
    [({"num_probes": 5}, "5 probes, where the kernels know 1 to 4"), ({"normaliser": "kept"}, "normaliser=kept")],
)
def test_why_the_kernels_decline_is_logged_once(options, reason, caplog, monkeypatch):
    monkeypatch.setattr(backend, "_LOGGED", set())
    ffn = build_ffn("lookup", hidden_size=32, **options)
    x = torch.randn(9, 32)
    with caplog.at_level(logging.WARNING, "lookupffn.ops.backend"):
        for _ in range(2):
            ffn(x)
            with torch.no_grad():
                ffn(x)
    assert [reason in record.message for record in caplog.records] == [True]
    monkeypatch.setenv("LOOKUPFFN_BACKEND", "cpu")
    with pytest.raises(UserError, match=reason):
        ffn(x)


@pytest.mark.usefixtures("kernels")
def test_nothing_is_logged_where_the_kernels_run(caplog, monkeypatch):
    monkeypatch.setattr(backend, "_LOGGED", set())
    ffn = build_ffn("lookup", hidden_size=32)
    ffn(torch.randn(9, 32))
    with torch.no_grad():
        ffn(torch.randn(9, 32))
    assert not caplog.records
