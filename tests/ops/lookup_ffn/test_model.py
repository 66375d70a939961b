"""A whole model on the kernels: the same losses as on the reference, and nearly the same with int8 tables."""

import math

import pytest
import torch

from lookupffn import LookupRobertaConfig, LookupRobertaForMaskedLM

pytestmark = pytest.mark.usefixtures("kernels")


def test_trained_on_the_reference_evaluated_on_the_kernels(monkeypatch):
    config = LookupRobertaConfig(
        vocab_size=40,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=40,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        ffn={"name": "lookup", "num_tables": 16, "table_size": 32},
    )
    model = LookupRobertaForMaskedLM(config)
    ids = (torch.arange(32).view(1, -1) * torch.arange(1, 17).view(-1, 1)) % 35 + 5
    positions = torch.arange(0, 32, 5).expand(16, -1)
    batch = {"input_ids": ids, "masked_positions": positions, "labels": ids.gather(1, positions).roll(1, 1)}
    monkeypatch.setenv("LOOKUPFFN_BACKEND", "reference")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = model(**batch).loss.item()
    for _ in range(30):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        expected = model(**batch).loss.item()
        assert expected < first - 0.5
        monkeypatch.setenv("LOOKUPFFN_BACKEND", "auto")
        assert model(**batch).loss.item() == pytest.approx(expected, abs=1e-4)
        model.quantize_tables()
        assert math.exp(model(**batch).loss.item() - expected) == pytest.approx(1, abs=5e-3)
