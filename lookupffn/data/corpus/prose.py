"""From a docstring to the English in it.

A docstring is prose, markup and code in one string. ``paragraphs`` keeps the prose: wrapped lines are joined, markup
is reduced to the words it marks, and blocks in which code, doctest lines, tables or formulas outweigh the words are
left out.
"""

import hashlib
import inspect
import re

MIN_CHARACTERS = 24
MIN_WORDS = 4

_FENCE = re.compile(r"^\s*(```|~~~)")
_DIRECTIVE = re.compile(r"^\s*\.\.\s+(?:_[^:]+:|\|[^|]+\|)?\s*[\w:+-]*(?:::)?\s*")
_CODE_DIRECTIVE = re.compile(
    r"^\s*\.\.\s+(?:code|code-block|sourcecode|math|plot|ipython|testcode|testsetup|doctest|csv-table|list-table|toctree|"
    r"autosummary|currentmodule|image|figure|index|autoclass|automethod)::"
)
_RULE = re.compile(r"^[\s=\-~^\"'`#*+_.:|<>]{3,}$")
_BULLET = re.compile(r"^\s*(?:[-*+•]|\d{1,2}[.)]|\(?[a-z]\))\s+\S")
_FIELD = re.compile(
    r"^\s*:(?:param|type|return|returns|rtype|raises?|arg|keyword|ivar|cvar|var|attr|members?|meta)\b([^:]*):\s*"
)
_BARE_DIRECTIVE = re.compile(r"(?<=\s)\.\.\s+[\w-]+::\s*")
_ALERT = re.compile(r"^(?:>\s*)+(?:\[!\w+\]\s*)?")
_ROLE = re.compile(r":[\w:+-]+:`~?([^`<]+?)(?:\s*<[^`>]*>)?`")
_LINK = re.compile(r"`([^`<]+?)\s*<[^`>]*>`_{0,2}")
_MARKDOWN_LINK = re.compile(r"!?\[([^\]]*)\]\([^)\s]*\)")
_HTML = re.compile(
    r"</?(?:a|b|i|p|br|em|code|pre|tip|strong|div|span|img|ul|li|ol|h\d|hfoptions?|table|tr|td|sub|sup)\b[^<>\n]*>",
    re.I,
)
_URL = re.compile(r"<?\b(?:https?|ftp)://[^\s>)\]]+>?")
_TICKS = re.compile(r"`{1,3}([^`]*)`{1,3}_{0,2}")
_EMPHASIS = re.compile(r"(?<!\w)(\*{1,2})([^*\s][^*\n]*?)\1(?!\w)")
_FOOTNOTE = re.compile(r"\[\w+\]_")
_WORD = re.compile(r"(?<![\w.])[A-Za-z]+(?:['\u2019-][A-Za-z]+)*(?![\w(=])")
_SPACES = re.compile(r"\s+")
_HEADINGS = {
    "parameters", "returns", "return", "args", "arguments", "examples", "example", "notes", "note", "see also",
    "raises", "yields", "attributes", "references", "warnings", "warns", "other parameters", "methods", "usage", "todo",
    "shape", "keyword args", "keyword arguments", "inputs", "outputs",
}  # fmt: skip
_FUNCTION_WORDS = """
a after all an and any are as at be been before between both but by can do does each for from given has have how if in
into is it its may must no not of on one only or other over same see set should so such than that the their then there
these this to under up use used uses using via was were what when where which while will with without you your
"""
_SMALL_WORDS = frozenset(_FUNCTION_WORDS.split())


def _strip_code(lines: list[str]) -> list[str]:
    """Leave out fenced blocks and the indented body of a code directive or of a line that ends in ``::``."""
    kept: list[str] = []
    fenced = False
    body_indent: int | None = None  # lines deeper than this belong to the code block being skipped
    for line in lines:
        if _FENCE.match(line):
            fenced = not fenced
            kept.append("")
            continue
        if fenced:
            continue
        if body_indent is not None:
            if not line.strip():
                kept.append("")
                continue
            if len(line) - len(line.lstrip()) > body_indent:
                continue
            body_indent = None
        if _CODE_DIRECTIVE.match(line):
            body_indent = len(line) - len(line.lstrip())
            continue
        if line.rstrip().endswith("::") and not line.lstrip().startswith(".."):
            body_indent = len(line) - len(line.lstrip())
            line = line.rstrip()[:-1]
        kept.append(line)
    return kept


def _blocks(lines: list[str]) -> list[list[str]]:
    """Runs of lines between blank lines, without doctest lines, rules and section headings."""
    blocks: list[list[str]] = [[]]
    prompt = False
    dropped = 0
    for position, line in enumerate([*lines, ""]):
        text = line.strip()
        if not text:
            if dropped > len(blocks[-1]):
                blocks[-1].clear()  # the words around a doctest belong to it where the doctest is the longer part
            dropped, prompt = 0, False
            if blocks[-1]:
                blocks.append([])
        elif text.startswith((">>>", "In [", "Out[")):
            prompt, dropped = True, dropped + 1
        elif prompt:
            dropped += 1  # what the example printed
        elif _RULE.match(text) or text.rstrip(":").lower() in _HEADINGS:
            continue
        elif position + 1 < len(lines) and _RULE.match(lines[position + 1]) and len(text.split()) < 5:
            continue  # a heading over its underline
        else:
            blocks[-1].append(line)
    return [block for block in blocks if block]


def _unwrap(block: list[str]) -> list[str]:
    """Join wrapped lines; a bullet, or a step back to a smaller indent, starts a new line."""
    joined: list[str] = []
    last_indent = 0
    for line in block:
        indent = len(line) - len(line.lstrip())
        starts = (
            _BULLET.match(line) or _FIELD.match(line) or indent < last_indent or (joined and joined[-1].endswith(":"))
        )
        if joined and not starts:
            joined[-1] += " " + line.strip()
        else:
            joined.append(line.strip())
        last_indent = indent
    return joined


def _plain(line: str) -> str:
    """The words of a line without reStructuredText, Markdown and HTML marks."""
    line = _FIELD.sub(lambda match: f"{match.group(1).strip()}: " if match.group(1).strip() else "", line)
    line = _DIRECTIVE.sub("", line) if line.lstrip().startswith("..") else line
    line = _BARE_DIRECTIVE.sub("", _ALERT.sub("", line))
    line = _ROLE.sub(r"\1", line)
    line = _LINK.sub(r"\1", line)
    line = _MARKDOWN_LINK.sub(r"\1", line)
    line = _URL.sub("", line)
    line = _TICKS.sub(r"\1", line)
    line = _EMPHASIS.sub(r"\2", line)
    line = _HTML.sub("", line)
    line = _FOOTNOTE.sub("", line)
    return _SPACES.sub(" ", line).strip()


def is_prose(text: str) -> bool:
    """Whether words outweigh everything else in ``text`` and some of them are the small words of English."""
    if len(text) < MIN_CHARACTERS:
        return False
    words = _WORD.findall(text)
    if len(words) < MIN_WORDS:
        return False
    letters = sum(map(len, words))
    if letters + len(words) < 0.65 * len(text):
        return False
    small = sum(word.lower() in _SMALL_WORDS for word in words)
    sentence = text[0].isupper() and text[-1] in ".!?"
    return small * (20 if sentence else 8) >= len(words) or (sentence and len(words) <= 12)


def normalised(text: str) -> bytes:
    """A digest that is equal for texts that differ in case, spacing, digits or punctuation only."""
    letters = re.sub(r"[\W\d_]+", " ", text.lower()).strip()
    return hashlib.blake2b(letters.encode("utf-8", "replace"), digest_size=12).digest()


def paragraphs(docstring: str) -> list[str]:
    """The paragraphs of prose in one docstring, in order; empty when it holds none."""
    lines = inspect.cleandoc(docstring).split("\n")
    found: list[str] = []
    for block in _blocks(_strip_code(lines)):
        text = "\n".join(filter(None, map(_plain, _unwrap(block))))
        if is_prose(text):
            found.append(text)
    return found
