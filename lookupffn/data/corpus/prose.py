"""From a docstring to the English in it.

A docstring is prose and code in one string. ``paragraphs`` keeps a paragraph as it is written, parameter lists and
markup included, unless code (fenced or literal blocks, doctest lines and what they print, tables, formulas) outweighs
the words in it.
"""

import hashlib
import re
from collections.abc import Iterator

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
