"""What is loaded computes as what is new, to the last bit."""

from pathlib import Path

import pytest
import torch

from lookupffn.layers import ffn_names
from lookupffn.models import LookupRobertaConfig, LookupRobertaForMaskedLM
from lookupffn.models.loading import load_model

OPTIONS = {
    "lookup": {"num_tables": 4, "table_size": 16, "block_size": 8},
    "slide": {"bits": 3, "num_tables": 4},
    "mongoose": {"bits": 3, "num_tables": 4},
}


def gradients(model: LookupRobertaForMaskedLM) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(5, 300, (4, 24), generator=torch.Generator().manual_seed(2))
    positions = torch.arange(0, 24, 6).expand(4, -1)
    model.train()
    output = model(input_ids=ids, masked_positions=positions, labels=ids.gather(1, positions))
    (output.loss + sum(model.auxiliary_losses().values())).backward()
    return {"logits": output.logits.detach(), **{n: p.grad for n, p in model.named_parameters() if p.grad is not None}}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("hidden_size", [32, 48, 128])
@pytest.mark.parametrize("name", ffn_names())
def test_a_loaded_model_computes_as_the_one_that_was_saved(name: str, hidden_size: int, tmp_path: Path):
    torch.manual_seed(0)
    config = LookupRobertaConfig(
        vocab_size=301, hidden_size=hidden_size, num_hidden_layers=2, num_attention_heads=2, intermediate_size=72,
        max_position_embeddings=40, ffn={"name": name, **OPTIONS.get(name, {})},
    )  # fmt: skip
    new = LookupRobertaForMaskedLM(config)
    new.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    tensors = dict(new.named_parameters()) | dict(new.named_buffers())
    for key, tensor in [*loaded.named_parameters(), *loaded.named_buffers()]:
        assert tensor.data_ptr() % 64 == 0 and tensor.stride() == tensors[key].stride(), key
        assert tensor.untyped_storage().nbytes() == tensor.nbytes, key  # no piece of a file
    expected, found = gradients(new), gradients(loaded)
    assert expected.keys() == found.keys()
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []
