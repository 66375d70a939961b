"""BH4 mixed with its input: the structured projection that hash inputs come from.

Dimensions: M tokens, d input size, D the next power of two, b block size, G = D / b blocks, r copies.
"""

from torch import Tensor

from lookupffn.ops.backend import register, select
from lookupffn.ops.bh4 import cpu, reference
from lookupffn.ops.bh4.reference import FACTORS, bh4, next_power_of_two

__all__ = ["FACTORS", "bh4", "bh4_mix", "next_power_of_two"]

register("bh4_mix", "reference", reference.bh4_mix)
register("bh4_mix", "cpu", cpu.bh4_mix, cpu.declines)


def bh4_mix(x_Md: Tensor, weight: Tensor, bias: Tensor, alpha: float) -> Tensor:
    """alpha * BH4(x) + (1 - alpha) * x + bias, x repeated for each copy.

    Args:
        x_Md: [M, d].
        weight: [r, 4, G, b, b].
        bias: [columns], at most r * D.
        alpha: weight of BH4(x).

    Returns:
        [M, columns]; differentiable in x, weight and bias.
    """
    arguments = x_Md, weight, bias, alpha
    return select("bh4_mix", *arguments)(*arguments)
