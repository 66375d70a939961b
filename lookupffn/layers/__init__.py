"""Feed-forwards: one a file, all under the contract of base.py."""

from lookupffn.layers.base import ROLES, FeedForward, Options
from lookupffn.layers.registry import build_ffn, ffn_class, ffn_names, resolve_options

__all__ = [
    "ROLES",
    "FeedForward",
    "Options",
    "build_ffn",
    "ffn_class",
    "ffn_names",
    "resolve_options",
]
