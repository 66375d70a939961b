"""Feed-forwards: one a file, all under the contract of base.py."""

from lookupffn.ffn.base import ROLES, FeedForward, Options
from lookupffn.ffn.registry import build_ffn, ffn_class, ffn_names, resolve_options

__all__ = ["ROLES", "FeedForward", "Options", "build_ffn", "ffn_class", "ffn_names", "resolve_options"]
