"""MONGOOSE: SLIDE with learned hashes and tables rebuilt only on drift.

Chen et al., "MONGOOSE: A Learnable LSH Framework for Efficient Neural Network Training", ICLR 2021,
https://openreview.net/forum?id=wWK7yXkULyh.

- The hash projections are parameters. A triplet loss pulls the neurons of large inner product that a token missed into
  its buckets, and pushes those of small inner product that it retrieved out of them. Signs have no gradient, so the
  loss compares tanh of the projections; the model's own loss does not reach them.
- Tables are rebuilt when more than ``drift_threshold`` of the neurons' hash bits have changed since the last building.

Departures from the paper:
- Inner products are ranked for each token, over a sample of tokens, not against thresholds averaged over a batch; a
  token's positives and negatives meet in its own triplet.
- More positives than the 0.1% of the authors' code, which of 512 neurons is one half.
- Drift is seen in the codes themselves, not in a second, random hash of the weights: the projections drift too, and the
  loss computes these codes anyway.
- Tokens and neurons are scaled to the same norm before they are hashed, without which tanh would be linear for one of
  them and saturated for the other. No sign changes.

Dimensions: as in slide.py; m sampled tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lookupffn.config.schema import option
from lookupffn.layers.base import Options
from lookupffn.layers.ffn.slide import LARGEST_BITS, SlideFFN
from lookupffn.ops.precision import autocast


@dataclass(frozen=True)
class MongooseOptions(Options):
    """Options of MONGOOSE.

    Attributes:
        intermediate_size: n, neurons; 4 * hidden_size if None.
        bits: K of a table, 1 to 12: a table has 2^K buckets.
        num_tables: L.
        tokens_per_pass: as in SLIDE.
        drift_threshold: share of hash bits that must have changed, 0 to 1, for the tables to be rebuilt.
        check_every: training forwards from one look at the drift to the next.
        triplet_weight: of the triplet loss in the training loss.
        triplet_margin: how much more alike positives than negatives should be, in cosines.
        triplet_tokens: m, tokens sampled at each training forward for the triplet loss.
        positives: share of neurons, those of largest inner product with a token, that belong in its buckets, 0 to 0.5.
            Those in the lower half, by inner product, do not.
    """

    intermediate_size: int | None = option(None, at_least=1, shared=True)
    bits: int = option(6, at_least=1, at_most=LARGEST_BITS)
    num_tables: int = option(8, at_least=1)
    tokens_per_pass: int = option(1, at_least=1)
    drift_threshold: float = option(0.01, at_least=0, at_most=1)
    check_every: int = option(1, at_least=1)
    triplet_weight: float = option(0.1, at_least=0)
    triplet_margin: float = option(1.0, at_least=0)
    triplet_tokens: int = option(256, at_least=1)
    positives: float = option(0.05, above=0, at_most=0.5)

    def resolve(self, hidden_size: int) -> MongooseOptions:
        """See the base class."""
        return replace(self, intermediate_size=self.intermediate_size or 4 * hidden_size)


class MongooseFFN(SlideFFN):
    """SLIDE whose hash projections are the parameter ``projection`` [H, d] and learn from a triplet loss."""

    name = "mongoose"
    Options = MongooseOptions
    options: MongooseOptions

    def create_hash(self) -> None:
        """See SLIDE."""
        self.projection = nn.Parameter(torch.empty(self.options.num_tables * self.options.bits, self.in_features))
        self._triplet_loss: Tensor | None = None

    def reset_hash(self) -> None:
        """N(0, 1/d): projections of unit variance."""
        nn.init.normal_(self.projection, std=1 / sqrt(self.in_features))

    def projections(self, v: Tensor) -> Tensor:
        """See SLIDE. Rows are scaled to norm sqrt(d) first."""
        return sqrt(self.in_features) * F.normalize(v, dim=-1) @ self.projection.T

    def is_due(self, codes_Ln: Tensor) -> Tensor:
        """See SLIDE."""
        bits = torch.arange(self.options.bits, dtype=torch.int32, device=codes_Ln.device)
        changed = torch.bitwise_right_shift((codes_Ln ^ self.codes).unsqueeze(-1), bits) & 1
        drifted = changed.float().mean() > self.options.drift_threshold
        # before the first building there is nothing that could have drifted
        return (drifted & (self.forwards % self.options.check_every == 0)) | (self.rebuilds == 0)

    def learn_hash(self, x_Md: Tensor, inner_Mn: Tensor, retrieved_Mn: Tensor) -> None:
        """Compute the triplet loss of sampled tokens."""
        if not self.training:
            return
        o, M = self.options, x_Md.shape[0]
        chosen_m = torch.randint(max(1, M), (min(o.triplet_tokens, M),), device=x_Md.device)
        with autocast(x_Md.device, enabled=False):
            weight_nd = self.intermediate.weight.detach()
            likeness_mn = self._likeness(x_Md.detach()[chosen_m].to(weight_nd.dtype), weight_nd)
            inner_mn, retrieved_mn = inner_Mn.detach()[chosen_m], retrieved_Mn[chosen_m]
            n = o.intermediate_size
            ranked_mn = inner_mn.sort(-1).values
            smallest_positive_m1 = ranked_mn[:, n - max(1, round(o.positives * n)), None]
            positive_mn = (inner_mn >= smallest_positive_m1) & ~retrieved_mn
            negative_mn = (inner_mn < ranked_mn[:, n // 2, None]) & retrieved_mn
            gap_m = _mean_where(negative_mn, likeness_mn) - _mean_where(positive_mn, likeness_mn)
            # a token that missed nothing, or retrieved nothing wrong, makes no triplet
            is_triplet_m = positive_mn.any(1) & negative_mn.any(1)
            loss_m = F.relu(gap_m + o.triplet_margin) * is_triplet_m
            self._triplet_loss = o.triplet_weight * loss_m.sum() / is_triplet_m.sum().clamp(min=1)

    def _likeness(self, x_md: Tensor, weight_nd: Tensor) -> Tensor:
        """Cosines of relaxed codes, [m, n]."""
        relaxed_mH, relaxed_nH = (F.normalize(torch.tanh(self.projections(v)), dim=-1) for v in (x_md, weight_nd))
        return relaxed_mH @ relaxed_nH.T

    def auxiliary_losses(self) -> dict[str, Tensor]:
        """The weighted triplet loss of the last forward in training."""
        return {} if self._triplet_loss is None else {"triplet": self._triplet_loss}

    def parameter_roles(self) -> dict[str, list[nn.Parameter]]:
        """See the base class."""
        return {"hash": [self.projection]}

    def train(self, mode: bool = True) -> Self:
        """As nn.Module's. The loss is let go with its graph, which a module could not be copied with."""
        self._triplet_loss = None
        return super().train(mode)

    def hash_flops(self) -> int:
        """FLOPs of a token's hashes: dense products."""
        return 2 * self.projection.numel()


def _mean_where(mask_mn: Tensor, values_mn: Tensor) -> Tensor:
    """Mean of each row over the mask, [m]; 0 where the mask is empty."""
    return (values_mn * mask_mn).sum(1) / mask_mn.sum(1).clamp(min=1)
