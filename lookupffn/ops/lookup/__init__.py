"""The whole lookup: from hash inputs to the sum of scored table rows.

Dimensions: M tokens, T tables, tau bits a code, S = 2^tau rows a table, N probes, d hidden size.
"""

from torch import Tensor

from lookupffn.ops.backend import register, select
from lookupffn.ops.lookup import cpu, reference

__all__ = ["lookup"]

register("lookup", "reference", reference.lookup)
register("lookup", "cpu", cpu.lookup, cpu.declines)


def lookup(z_MTt: Tensor, table_TSd: Tensor, num_probes: int, normaliser: str = "all") -> Tensor:
    """y = sum over tables and probes of score * row (Zeng et al., arXiv 2403.07221, section 3).

    Args:
        z_MTt: [M, T, tau] hash inputs.
        table_TSd: [T, 2^tau, d].
        num_probes: N, how many of the largest terms of the softmax over sign codes to keep, 1 to 2^tau.
        normaliser: see ``lookupffn.ops.hash.hash_scores``; only the reference knows "kept".

    Returns:
        [M, d] in the type of the table; differentiable in z and table.

    Raises:
        ValueError: shapes do not fit together or num_probes is out of range.
    """
    if z_MTt.dim() != 3 or table_TSd.dim() != 3 or table_TSd.shape[:2] != (z_MTt.shape[1], 1 << z_MTt.shape[2]):
        raise ValueError(
            f"z [M, T, tau] and tables [T, 2^tau, d] do not fit: {list(z_MTt.shape)} and {list(table_TSd.shape)}"
        )
    arguments = z_MTt, table_TSd, num_probes, normaliser
    return select("lookup", *arguments)(*arguments)
