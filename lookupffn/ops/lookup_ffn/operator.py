"""The fused feed-forward as torch knows it, whatever backend computes it: schemas and shapes of results."""

import torch
from torch import Tensor

torch.library.define(
    "lookupffn::lookup_ffn",
    "(Tensor x, Tensor projection, Tensor projection_bias, Tensor table, Tensor? scales, Tensor bias, float alpha, "
    "int num_probes, Tensor? folded=None) -> Tensor",
)
torch.library.define("lookupffn::fold_projection", "(Tensor projection, float alpha) -> Tensor")
torch.library.define(
    "lookupffn::multiply_out_projection", "(Tensor projection, float alpha, int columns, int depth) -> Tensor"
)
# weights packed for int8 are named by a handle
torch.library.define(
    "lookupffn::lookup_int8_new",
    "(Tensor projection, Tensor projection_bias, Tensor table, Tensor scales, Tensor bias, float alpha, "
    "int num_probes, int inputs) -> int",
)
torch.library.define("lookupffn::lookup_int8_free", "(int handle) -> ()")
torch.library.define("lookupffn::lookup_int8", "(Tensor x, int handle) -> Tensor")


@torch.library.register_fake("lookupffn::lookup_ffn")
def _fake_lookup_ffn(
    x: Tensor,
    projection: Tensor,
    projection_bias: Tensor,
    table: Tensor,
    scales: Tensor | None,
    bias: Tensor,
    alpha: float,
    num_probes: int,
    folded: Tensor | None = None,
) -> Tensor:
    return x.new_empty(x.shape[0], table.shape[2])
