"""The fused feed-forward as torch knows it, whatever backend computes it: schemas and shapes of results."""

import torch
from torch import Tensor

torch.library.define(
    "lookupffn::lookup_ffn",
    "(Tensor x, Tensor projection, Tensor projection_bias, Tensor table, Tensor? scales, Tensor bias, float skip, "
    "int size, int num_probes, Tensor? digits=None, Tensor? digit_scales=None) -> Tensor",
)
torch.library.define("lookupffn::split_projection", "(Tensor matrix) -> (Tensor, Tensor)")


@torch.library.register_fake("lookupffn::lookup_ffn")
def _fake_lookup_ffn(
    x: Tensor,
    projection: Tensor,
    projection_bias: Tensor,
    table: Tensor,
    scales: Tensor | None,
    bias: Tensor,
    skip: float,
    size: int,
    num_probes: int,
    digits: Tensor | None = None,
    digit_scales: Tensor | None = None,
) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)
