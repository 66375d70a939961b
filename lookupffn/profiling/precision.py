"""A feed-forward in the precision it would be served in."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lookupffn.layers.base import FeedForward

BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


def input_type(precision: str) -> torch.dtype:
    """The type of inputs and outputs: int8 is the weights' alone."""
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def in_precision(module: FeedForward, precision: str) -> Callable[[Tensor], Tensor]:
    """The feed-forward for inference with weights of a precision.

    Args:
        module: in evaluation mode; it is changed.
        precision: "float32" and "bfloat16", which give the module itself; or "int8", which gives a lookup prepared for
            the int8 kernels, and any other feed-forward with torch's dynamic quantisation of its Linears.
    """
    if precision != "int8":
        return module.to(input_type(precision))
    if hasattr(module, "prepared"):
        return module.prepared("int8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the move of its quantisation elsewhere
        return torch.ao.quantization.quantize_dynamic(module, {nn.Linear}, dtype=torch.qint8)
