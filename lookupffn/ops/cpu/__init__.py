"""C++ kernels of the operations, compiled at first use."""

from lookupffn.ops.cpu.folding import FoldedProjection
from lookupffn.ops.cpu.load import available, unavailable_reason
from lookupffn.ops.cpu.operators import bh4_mix, lookup, lookup_ffn, serves_bh4_mix, serves_lookup, serves_lookup_ffn

__all__ = [
    "FoldedProjection",
    "available",
    "bh4_mix",
    "lookup",
    "lookup_ffn",
    "serves_bh4_mix",
    "serves_lookup",
    "serves_lookup_ffn",
    "unavailable_reason",
]
