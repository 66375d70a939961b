"""The mathematics of the lookup, one operation a file or, where it has several backends, a folder."""

from lookupffn.ops.bh4 import bh4
from lookupffn.ops.gather import weighted_gather
from lookupffn.ops.hadamard import hadamard_matrix, hadamard_transform
from lookupffn.ops.hash import hash_scores, nearest_codes
from lookupffn.ops.lookup import lookup
from lookupffn.ops.lookup_ffn import LookupWeights, PreparedInt8, PreparedLookup, hash_inputs, lookup_ffn, quantized
from lookupffn.ops.transforms import scale_gradient

__all__ = [
    "LookupWeights",
    "PreparedInt8",
    "PreparedLookup",
    "bh4",
    "hadamard_matrix",
    "hadamard_transform",
    "hash_inputs",
    "hash_scores",
    "lookup",
    "lookup_ffn",
    "nearest_codes",
    "quantized",
    "scale_gradient",
    "weighted_gather",
]
