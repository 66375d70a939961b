"""A feed-forward in the precision it would be served in."""

from __future__ import annotations

import warnings
from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


def input_type(precision: str) -> torch.dtype:
    """The type of inputs and outputs: int8 is the weights' alone."""
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def in_precision(module: Module, precision: str) -> Module:
    """The module for inference with weights of a precision.

    Args:
        module: a feed-forward in evaluation mode; it is changed.
        precision: "float32", "bfloat16", or "int8": a lookup's tables, and torch's dynamic quantisation of a Linear.
    """
    if precision != "int8":
        return module.to(input_type(precision))
    if hasattr(module, "quantize_tables"):
        module.quantize_tables()
        return module
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the move of its quantisation elsewhere
        return torch.ao.quantization.quantize_dynamic(module, {nn.Linear}, dtype=torch.qint8)
