"""Where attention starts from, other than at random: both recipes shorten the plateau that masked language modelling
starts on, which lasts until attention has found out that neighbours matter."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor, nn
from transformers import initialization

# products of the weights at the start: query with key, value with output
QUERY_KEY, VALUE_OUTPUT = 1.0, 0.4


def sinusoids(positions: int, size: int, std: float) -> Tensor:
    """Sines and cosines of the position, wavelengths from 2 pi to 2 pi times the number of positions.

    Args:
        positions: rows.
        size: columns; the shortest wavelengths come first.
        std: standard deviation of the entries.

    Returns:
        [positions, size] float32.
    """
    frequency_F = positions ** -torch.linspace(0, 1, (size + 1) // 2)
    angle_PF = torch.arange(positions).unsqueeze(1) * frequency_F
    return std * 2**0.5 * torch.stack([angle_PF.sin(), angle_PF.cos()], -1).flatten(1)[:, :size]


@torch.no_grad()
def mimetic_attention(query: nn.Linear, key: nn.Linear, value: nn.Linear, output: nn.Linear, num_heads: int) -> None:
    """Attention that starts as trained attention looks: tokens attend to tokens like them and pass on what is there.

    As Trockman and Kolter, "Mimetic Initialization of Self-Attention Layers" (arXiv 2305.09828): products of query and
    key, and of value and output, are multiples of the identity. Departures: no noise; every head compares the first
    features, which hold the short wavelengths of ``sinusoids`` and so tell neighbours from others; the product of value
    and output is positive, so that a token starts as itself and the mean of its neighbours.

    Args:
        query: weight [d, d], also the next three.
        key: see query.
        value: see query.
        output: see query.
        num_heads: of d / num_heads features each.
    """
    identity_dd = torch.eye(query.weight.shape[0])
    first_dd = identity_dd[: len(identity_dd) // num_heads].repeat(num_heads, 1)
    for linear, start_dd, product in (
        (query, first_dd, QUERY_KEY),
        (key, first_dd, QUERY_KEY),
        (value, identity_dd, VALUE_OUTPUT),
        (output, identity_dd, VALUE_OUTPUT),
    ):
        initialization.copy_(linear.weight, sqrt(product) * start_dd.to(linear.weight))
