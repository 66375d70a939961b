"""The mathematics of the lookup, one operation a file."""

from lookupffn.ops.bh4 import bh4
from lookupffn.ops.gather import weighted_gather
from lookupffn.ops.hadamard import hadamard_matrix, hadamard_transform
from lookupffn.ops.hash import hash_scores, nearest_codes
from lookupffn.ops.lookup import lookup

__all__ = [
    "bh4",
    "hadamard_matrix",
    "hadamard_transform",
    "hash_scores",
    "lookup",
    "nearest_codes",
    "weighted_gather",
]
