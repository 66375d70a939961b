"""The text in Python source: docstrings and comments, found by a lexical rule that no version of Python changes.

Python's own parser accepts another language in each version. Strings and comments are told apart by one regular
expression instead: what it finds in a file is the same everywhere, whether or not the file is valid Python here.
"""

import re
from collections.abc import Iterator

_TOKEN = re.compile(
    r"#[^\n]*"
    r'|"""[^"\\]*(?:(?:\\.|"(?!""))[^"\\]*)*"""'
    r"|'''[^'\\]*(?:(?:\\.|'(?!''))[^'\\]*)*'''"
    r'|"[^"\\\n]*(?:\\.[^"\\\n]*)*"'
    r"|'[^'\\\n]*(?:\\.[^'\\\n]*)*'",
    re.DOTALL,
)
_NOT_TEXT = frozenset("bft")  # string prefixes: bytes, and templates whose text is made at run time
_ESCAPE = re.compile(r"\\(\n|[\\'\"abfnrtv]|[0-7]{1,3}|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U00[01][0-9a-fA-F]{5})")
_PLAIN = {"\n": "", "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


def docstrings(source: str) -> Iterator[str]:
    """The triple-quoted strings of a file, in order; f-strings and bytes are left out.

    More than what Python calls docstrings: torch, numpy and pandas keep much of theirs in calls and variables.
    """
    for match in _TOKEN.finditer(source):
        token, start = match[0], match.start()
        if len(token) < 6 or token[:3] not in ('"""', "'''"):
            continue
        prefix = source[max(0, start - 2) : start].lower()
        prefix = prefix[-1:] if len(prefix) == 2 and not prefix.isalpha() else prefix
        if _NOT_TEXT.isdisjoint(prefix):
            yield token[3:-3] if "r" in prefix else unescaped(token[3:-3])


def comments(source: str) -> Iterator[str]:
    """The comments of a file, in order; comments on consecutive lines are one text."""
    block: list[str] = []
    end = 0  # of the last comment, where it has a line to itself
    for match in _TOKEN.finditer(source):
        if not match[0].startswith("#"):
            continue
        line_start = source.rfind("\n", 0, match.start()) + 1
        alone = not source[line_start : match.start()].strip()
        if block and not (alone and end and line_start == end + 1):
            yield "\n".join(block)
            block = []
        block.append(match[0].lstrip("#!:").removeprefix(" "))
        end = match.end() if alone else 0
    if block:
        yield "\n".join(block)


def unescaped(text: str) -> str:
    """The text that a string literal stands for; names of characters and unknown escapes stay as they are."""
    return _ESCAPE.sub(_character, text) if "\\" in text else text


def _character(match: re.Match) -> str:
    escape = match[1]
    if escape[0] in "xuU":
        number = int(escape[1:], 16)
        return chr(number) if number <= 0x10FFFF else match[0]
    if escape[0].isdigit():
        return chr(int(escape, 8))
    return _PLAIN.get(escape, escape)
