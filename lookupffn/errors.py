"""The one exception a user is meant to read."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """Something the user gave is wrong.

    The message is one line: what is wrong, where, what to do. The entry points print it without a traceback and exit
    with a non-zero status; library callers see an ordinary ``ValueError``.
    """


def unknown_name(kind: str, name: object, valid: Iterable[str]) -> UserError:
    """The error for a name that is not among ``valid``, nearest names first.

    Args:
        kind: what the name should be, as the user calls it ("ffn", "option of ffn 'lookup'").
        name: what was given.
        valid: every name that would have been accepted.
    """
    choices = sorted(valid)
    nearest = get_close_matches(str(name), choices, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, nearest))}? " if nearest else ""
    return UserError(f"unknown {kind} {str(name)!r}: {hint}valid: {', '.join(choices) or 'none at all'}")


def first_line(error: BaseException) -> str:
    """The first line of what a library said, for a message of one line."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
