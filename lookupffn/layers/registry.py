"""Every feed-forward by name. A new one is a file in ffn/, a line in ``_CLASSES`` and a YAML in configs/ffn/.

Those of other packages are found by their entry points (see lookupffn/plugins.py).
"""

from __future__ import annotations

from typing import Any

from lookupffn import plugins
from lookupffn.errors import UserError, unknown_name
from lookupffn.layers.base import FeedForward, Options
from lookupffn.layers.ffn.fff import FastFeedForward
from lookupffn.layers.ffn.gemm import GemmFFN
from lookupffn.layers.ffn.lookup import LookupFFN
from lookupffn.layers.ffn.low_rank import LowRankFFN
from lookupffn.layers.ffn.mongoose import MongooseFFN
from lookupffn.layers.ffn.none import NoneFFN
from lookupffn.layers.ffn.product_key import ProductKeyMemory
from lookupffn.layers.ffn.shuffle import ShuffleFFN
from lookupffn.layers.ffn.slide import SlideFFN
from lookupffn.layers.ffn.switch import SwitchFFN
from lookupffn.layers.ffn.yoso import YosoFFN

_CLASSES: dict[str, type[FeedForward]] = {
    cls.name: cls
    for cls in (
        FastFeedForward,
        GemmFFN,
        LookupFFN,
        LowRankFFN,
        MongooseFFN,
        NoneFFN,
        ProductKeyMemory,
        ShuffleFFN,
        SlideFFN,
        SwitchFFN,
        YosoFFN,
    )
}


def ffn_names() -> list[str]:
    """The names of all feed-forwards, those of installed packages among them."""
    return sorted(_CLASSES.keys() | plugins.feed_forwards().keys())


def ffn_class(name: str) -> type[FeedForward]:
    """The class of a feed-forward.

    Raises:
        UserError: unknown name, or a package's entry point that is no feed-forward.
    """
    if name in _CLASSES:
        return _CLASSES[name]
    point = plugins.feed_forwards().get(name)
    if point is None:
        raise unknown_name("ffn", name, ffn_names())
    try:
        cls = point.load()
    except Exception as error:  # whatever the package raises
        raise UserError(
            f"ffn {name!r} cannot be imported from {point.value}: {' '.join(str(error).split())}"
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, FeedForward) and cls.name == name):
        raise UserError(f"{point.value} is not a FeedForward of the name {name!r}, which its entry point promises")
    return cls


def resolve_options(name: str, hidden_size: int, options: dict[str, Any]) -> Options:
    """Check a feed-forward's options and fill in what they leave open, building nothing.

    Raises:
        UserError: an unknown ffn or option, or a value it cannot have.
    """
    cls = ffn_class(name)
    if isinstance(hidden_size, bool) or not isinstance(hidden_size, int) or hidden_size < 1:
        raise UserError(f"ffn {name!r}: hidden_size must be a positive integer, not {hidden_size!r}")
    return cls.Options.from_mapping(name, options).resolve(hidden_size)


def build_ffn(name: str, *, hidden_size: int, out_features: int | None = None, **options: Any) -> FeedForward:
    """Build a feed-forward; LayerNorm, dropout and residual are left to the layer around it.

    Args:
        name: one of ``ffn_names()``.
        hidden_size: size of its inputs.
        out_features: size of its outputs; hidden_size if None.
        **options: the feed-forward's own options (see its Options class).

    Returns:
        A module from [..., hidden_size] to [..., out_features], with ``cost()``.

    Raises:
        UserError: an unknown ffn or option, a value it cannot have, or sizes it cannot map between.
    """
    resolved = resolve_options(name, hidden_size, options)
    outputs = hidden_size if out_features is None else out_features
    if isinstance(outputs, bool) or not isinstance(outputs, int) or outputs < 1:
        raise UserError(f"ffn {name!r}: out_features must be a positive integer, not {outputs!r}")
    cls = ffn_class(name)
    if cls.square and outputs != hidden_size:
        raise UserError(f"ffn {name!r} gives outputs of its inputs' size only: out_features must be {hidden_size}")
    return cls(hidden_size, outputs, resolved)
