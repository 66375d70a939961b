"""The orthonormal Walsh-Hadamard transform.

Sylvester (natural) order: H_2n = H_2 (x) H_n, so H H^T = I and H_ab = H_a (x) H_b. The transform is applied one
Kronecker factor at a time, each as a small matrix product: on a CPU and on a GPU this beats log2(n) butterfly passes
over memory, and autograd needs nothing but the constant matrices.
"""

from functools import lru_cache
from math import prod

import torch
from torch import Tensor

_LARGEST_FACTOR = 32  # a 32 x 32 product costs little and keeps the number of passes over memory low


@lru_cache(maxsize=64)
def _matrix(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    # Built outside of inference mode: an inference tensor in the cache could never be used in training again.
    with torch.inference_mode(False):
        h = torch.ones(1, 1, dtype=torch.float64)
        while h.shape[0] < n:
            h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)], 0)
        return (h / n**0.5).to(dtype=dtype, device=device)


def hadamard_matrix(n: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
    """The orthonormal Hadamard matrix of Sylvester's order.

    Args:
        n: size, a power of two.
        dtype: of the result.
        device: of the result.

    Returns:
        [n, n], symmetric, H H = I. Cached: do not write to it.

    Raises:
        ValueError: n is not a power of two.
    """
    if n < 1 or n & (n - 1):
        raise ValueError(f"a Hadamard matrix here needs a power of two, not {n}")
    # what is made while a graph is traced has no numbers and must not be kept
    build = _matrix.__wrapped__ if torch.compiler.is_compiling() else _matrix
    return build(n, dtype, torch.device(device))


def hadamard_transform(x: Tensor, dim: int = -1) -> Tensor:
    """Multiply one dimension of ``x`` by the orthonormal Hadamard matrix.

    Args:
        x: any shape; the size of ``dim`` is a power of two.
        dim: the dimension to transform.

    Returns:
        The shape of ``x``. The transform is its own inverse and its own transpose.

    Raises:
        ValueError: the size of ``dim`` is not a power of two.
    """
    dim %= x.dim()
    n = x.shape[dim]
    if n < 1 or n & (n - 1):
        raise ValueError(f"the Hadamard transform needs a power of two, dimension {dim} has {n}")
    before, after = prod(x.shape[:dim]), prod(x.shape[dim + 1 :])  # Size.numel would fix them when exported
    out, left, right = x.reshape(before, n, after), 1, n
    while right > 1:
        factor = min(right, _LARGEST_FACTOR)
        right //= factor
        h = hadamard_matrix(factor, x.dtype, x.device)
        rest = right * after
        shape = (before * left, factor, rest)
        # rest == 1 is the transform of the last dimension: one tall product instead of many matrix-vector ones
        out = out.reshape(-1, factor) @ h if rest == 1 else torch.matmul(h, out.reshape(shape))
        left *= factor
    return out.reshape(x.shape)
