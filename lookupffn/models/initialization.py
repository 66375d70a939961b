"""Where attention and the LM head start from, other than at random: these recipes shorten the plateau that masked
language modelling starts on, which lasts until attention has found out that neighbours matter."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor, nn
from transformers import initialization

from lookupffn.layers.ffn.lookup import LookupFFN
from lookupffn.ops import hash_scores

# products of the weights at the start: query with key, value with output
QUERY_KEY, VALUE_OUTPUT = 1.0, 0.4
# so small that GELU is nearly linear; the head's LayerNorm restores the scale
HEAD = 0.2
# that a lookup's start is fitted on
_INPUTS_PER_BIT = 8


def frequencies(positions: int, size: int) -> Tensor:
    """[size / 2, rounded up] radians a position, from 1 down to 1 / positions."""
    return positions ** -torch.linspace(0, 1, (size + 1) // 2)


def sinusoids(positions: int, size: int, std: float) -> Tensor:
    """Sines and cosines of the position, wavelengths from 2 pi to 2 pi times the number of positions.

    Args:
        positions: rows.
        size: columns; the shortest wavelengths come first.
        std: standard deviation of the entries.

    Returns:
        [positions, size] float32.
    """
    angle_PF = torch.arange(positions).unsqueeze(1) * frequencies(positions, size)
    return std * 2**0.5 * torch.stack([angle_PF.sin(), angle_PF.cos()], -1).flatten(1)[:, :size]


def rotation(positions: int, size: int, offset: int) -> Tensor:
    """What takes the ``sinusoids`` of a position to those of the position ``offset`` later.

    Args:
        positions: as in ``sinusoids``.
        size: see positions.
        offset: positions, negative for earlier ones.

    Returns:
        [size, size] float32, orthogonal.
    """
    angle_F = offset * frequencies(positions, size)
    cos, sin = angle_F.cos(), angle_F.sin()
    pairs = torch.stack([torch.stack([cos, sin], -1), torch.stack([-sin, cos], -1)], 1)
    return torch.block_diag(*pairs)[:size, :size]


@torch.no_grad()
def mimetic_attention(
    query: nn.Module, key: nn.Module, value: nn.Module, output: nn.Module, num_heads: int, positions: int | None
) -> None:
    """Attention that starts as trained attention looks: each head at one neighbour, passing on what is there.

    As Trockman and Kolter, "Mimetic Initialization of Self-Attention Layers" (arXiv 2305.09828): products of query and
    key, and of value and output, are multiples of the identity. Departures: no noise; every head compares the first
    features, which hold the short wavelengths of ``sinusoids`` and so tell neighbours apart; the heads' queries are
    turned to the tokens 1 before, 1 after, 2 before and so on, without which heads are alike and left is as right; the
    product of value and output is positive, so that a token starts as itself and the mean of its neighbours. A lookup
    starts near such a matrix.

    Args:
        query: nn.Linear or LookupFFN from d to d, also the next three.
        key: see query.
        value: see query.
        output: see query.
        num_heads: of d / num_heads features each.
        positions: rows of the sinusoidal position embeddings; None where positions start at random, and every head
            compares tokens with themselves.
    """
    d = output.out_features
    identity_dd, head = torch.eye(d), d // num_heads
    first_hd = identity_dd[:head]
    offsets = [(h // 2 + 1) * (-1) ** (h + 1) for h in range(num_heads)]
    turned = [first_hd if positions is None else rotation(positions, d, offset)[:head] for offset in offsets]
    for projection, start_dd, product in (
        (query, torch.cat(turned), QUERY_KEY),
        (key, first_hd.repeat(num_heads, 1), QUERY_KEY),
        (value, identity_dd, VALUE_OUTPUT),
        (output, identity_dd, VALUE_OUTPUT),
    ):
        weight_dd = sqrt(product) * start_dd
        if isinstance(projection, LookupFFN):
            start_as_linear(projection, weight_dd)
        else:
            initialization.copy_(projection.weight, weight_dd.to(projection.weight))


@torch.no_grad()
def identity_transform(dense: nn.Linear) -> None:
    """Starts the LM head's transform, dense and GELU and LayerNorm, close to a LayerNorm alone.

    Args:
        dense: from d to d; its bias is kept.
    """
    initialization.copy_(dense.weight, HEAD * torch.eye(dense.in_features).to(dense.weight))


@torch.no_grad()
def start_as_linear(lookup: LookupFFN, weight_od: Tensor) -> None:
    """Sets a lookup's tables so that it starts near a linear map.

    The row of a code is a sum over its bits, each adding or subtracting a vector of its own. These vectors are the
    least-squares fit of the map on normal inputs.

    Args:
        lookup: its projection is kept.
        weight_od: the map from d to o, as nn.Linear has it.
    """
    table, o = lookup.table, lookup.options
    if table.is_meta:
        return
    T, S, t, d = o.num_tables, o.table_size, o.bits, lookup.in_features
    generator = torch.Generator().manual_seed(0)
    x_Md = torch.randn(_INPUTS_PER_BIT * T * t, d, generator=generator, dtype=torch.float64)
    z_MTt = (x_Md @ lookup.projection_matrix().cpu().t()).view(-1, T, t)
    codes_MTN, scores_MTN = hash_scores(z_MTt, o.num_probes, o.normaliser)
    signs_St = (2 * (torch.arange(S).unsqueeze(1) >> torch.arange(t) & 1) - 1).double()
    added_MB = (signs_St[codes_MTN.long()] * scores_MTN.unsqueeze(-1)).sum(2).flatten(1)
    products_BB = added_MB.t() @ added_MB
    products_BB.diagonal().add_(1e-3 * products_BB.diagonal().mean())
    vectors_Ttd = torch.linalg.solve(products_BB, added_MB.t() @ x_Md).view(T, t, d)
    initialization.copy_(table, (signs_St @ vectors_Ttd @ weight_od.double().t()).to(table))
