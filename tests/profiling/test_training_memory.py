"""The plan of a step's memory against what torch's allocator gives out."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from lookupffn.models import LookupRobertaConfig, LookupRobertaForMaskedLM
from lookupffn.profiling.training_memory import highest_allocated, plan_memory

SIZES = {"length": 32, "masked": 5}


def model_of(ffn: str) -> LookupRobertaForMaskedLM:
    torch.manual_seed(0)
    config = LookupRobertaConfig(
        vocab_size=2000, num_hidden_layers=2, hidden_size=64, num_attention_heads=2, intermediate_size=256,
        max_position_embeddings=64, ffn={"name": ffn}, hidden_dropout_prob=0.1,
    )  # fmt: skip
    return LookupRobertaForMaskedLM(config).train()


@pytest.mark.parametrize("ffn", ["gemm", "lookup", "shuffle"])
@pytest.mark.parametrize(("precision", "attention"), [("fp32", "sdpa"), ("bf16", "eager")])
def test_the_allocator_agrees(ffn: str, precision: str, attention: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOOKUPFFN_BACKEND", "reference")
    model = model_of(ffn)
    plan = plan_memory(model, sequences=64, precision=precision, attention=attention, **SIZES)
    numbers = sum(p.numel() for p in model.parameters())
    assert (plan.weights, plan.gradients, plan.optimizer) == (4 * numbers, 4 * numbers, 8 * numbers)
    ids = torch.randint(2000, (64, SIZES["length"]))
    positions = torch.arange(SIZES["masked"]).expand(64, -1)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler, autocast:
        model(input_ids=ids, masked_positions=positions, labels=ids[:, : SIZES["masked"]]).loss.backward()
    assert plan.peak - plan.weights - plan.optimizer == pytest.approx(highest_allocated(profiler), rel=0.1)
    if precision == "fp32":
        assert plan.copies == pytest.approx(0, abs=20_000)
    assert set(plan.activations) >= {"attention", "feed-forwards", "head"}
