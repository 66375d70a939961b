"""Numbers from a configuration, where a user may have typed anything."""

from numbers import Real

from lookupffn.errors import UserError


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def share(value: object, name: str, *, zero: bool = False) -> float:
    """A number between 0 and 1, without its ends unless ``zero`` is allowed.

    Raises:
        UserError: it is something else; the message names ``name``.
    """
    if not _is_number(value) or not (0 <= value < 1 if zero else 0 < value < 1):
        need = "at least 0 and below 1, for example 0.05" if zero else "between 0 and 1, for example 0.15"
        raise UserError(f"{name} is {value!r}: it must be a number {need}")
    return float(value)


def whole(value: object, name: str, smallest: int, advice: str = "") -> int:
    """A whole number from ``smallest``; 1e6 is one.

    Raises:
        UserError: it is something else; the message names ``name``.
    """
    if not _is_number(value) or not float(value).is_integer() or value < smallest:
        raise UserError(f"{name} is {value!r}: it must be a whole number from {smallest}{advice}")
    return int(value)
