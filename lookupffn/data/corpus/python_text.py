"""The English in Python source: docstrings and comments, and the paragraphs in them that are prose.

Python's own parser accepts another language in each version. Strings and comments are told apart by one regular
expression instead: what it finds in a file is the same everywhere, whether or not the file is valid Python here.

A docstring is prose and code in one string. ``paragraphs`` keeps a paragraph as it is written, parameter lists and
markup included, unless code (fenced or literal blocks, doctest lines and what they print, tables, formulas) outweighs
the words in it.
"""

import hashlib
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
MIN_CHARACTERS = 24
MIN_WORDS = 4
MIN_LETTERS = 0.6  # of the bytes that are not white space; English prose has above 0.9, parameter lists about 0.8
_FENCE = re.compile(r"^\s*(```|~~~)")
_CODE_DIRECTIVE = re.compile(
    r"^\s*\.\.\s+(?:code|code-block|sourcecode|math|plot|ipython|testcode|testsetup|doctest|csv-table|list-table|toctree|"
    r"autosummary|currentmodule|image|figure|index|autoclass|automethod)::"
)
_PROMPT = (">>>", "In [", "Out[", "$ ")
# ASCII only: what else is a letter depends on the Unicode version of the interpreter
_LETTERS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_SPACE = b" \t\n\r\f\v"
_WORD = re.compile(r"[A-Za-z]{2,}")
_NOT_LETTERS = re.compile(rb"[^a-z\x80-\xff]+")


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


def dedented(docstring: str) -> list[str]:
    """Lines without the indentation that all but the first share; ``inspect.cleandoc`` changes with Python."""
    first, *rest = docstring.expandtabs().split("\n")
    margin = min((len(line) - len(line.lstrip(" ")) for line in rest if line.strip(" ")), default=0)
    return [first.lstrip(" "), *(line[margin:] for line in rest)]


def _lines_with_kind(docstring: str) -> Iterator[tuple[str, bool]]:
    """Each line of a docstring, and whether it is code."""
    fenced = prompted = False
    literal_indent: int | None = None  # lines deeper than this belong to a literal block
    for line in dedented(docstring):
        text, indent = line.strip(), len(line) - len(line.lstrip())
        if not text:
            prompted = False  # what a doctest prints ends at a blank line
            yield "", False
            continue
        if _FENCE.match(line):
            fenced = not fenced
            yield line, True
            continue
        if literal_indent is not None and indent <= literal_indent:
            literal_indent = None
        prompted = prompted or text.startswith(_PROMPT)
        yield line, fenced or prompted or literal_indent is not None
        if literal_indent is None and (_CODE_DIRECTIVE.match(line) or text.endswith("::")):
            literal_indent = indent


def is_prose(text: str) -> bool:
    """Whether ``text`` has a few words, and letters outweigh everything else in it."""
    if len(text) < MIN_CHARACTERS or len(_WORD.findall(text)) < MIN_WORDS:
        return False
    visible = text.encode("utf-8", "replace").translate(None, _SPACE)
    return len(visible) - len(visible.translate(None, _LETTERS)) >= MIN_LETTERS * len(visible)


def normalised(text: str) -> bytes:
    """A digest that is equal for texts that differ in ASCII case, spacing, digits or punctuation only."""
    letters = _NOT_LETTERS.sub(b" ", text.encode("utf-8", "replace").lower()).strip()
    return hashlib.blake2b(letters, digest_size=12).digest()


def paragraphs(docstring: str) -> list[str]:
    """The paragraphs of one docstring in which prose outweighs code, in order; empty when there is none."""
    found: list[str] = []
    block: list[tuple[str, bool]] = []
    for line, is_code in [*_lines_with_kind(docstring), ("", False)]:
        if line:
            block.append((line.rstrip(), is_code))
            continue
        code = sum(len(text) for text, is_code in block if is_code)
        text = "\n".join(text for text, _ in block)
        if 2 * code <= len(text) and is_prose(text):
            found.append(text)
        block = []
    return found
