import pytest

from lookupffn.data.corpus import python_text
from lookupffn.data.corpus.python_text import is_prose, normalised, paragraphs


def test_prose_is_kept_as_it_is_written():
    text = """Return the *given* ``items`` counted,
        as described in `the manual <https://example.org>`_.

        Parameters
        ----------
        items : list of str
            The items that are to be counted, in any
            order that you like.
        """
    assert paragraphs(text) == [
        "Return the *given* ``items`` counted,\nas described in `the manual <https://example.org>`_.",
        "Parameters\n----------\nitems : list of str\n"
        "    The items that are to be counted, in any\n    order that you like.",
    ]


def test_code_is_dropped_and_prose_around_it_kept():
    text = """Compute the sum of all the numbers.

    >>> compute([1, 2, 3])
    6

    The result is exact for whole numbers::

        result = compute(values)

        print("the result is", result)

    ```python
    compute(the, numbers, which, are, given)

    compute(the, other, numbers, as, well)
    ```

    .. code-block:: python

        for value in the_values: compute(value)

    It is slow for very long lists.
    """
    assert paragraphs(text) == [
        "Compute the sum of all the numbers.",
        "The result is exact for whole numbers::",
        "It is slow for very long lists.",
    ]


def test_a_paragraph_goes_where_doctest_lines_outweigh_its_words():
    assert paragraphs("See the result here:\n>>> compute(1, 2, 3)\n123456789\n>>> compute(4, 5)\n123456789") == []
    kept = "This paragraph has a good deal to say\nabout the function and what it does.\n>>> f(1)\n1"
    assert paragraphs(kept) == [kept]


@pytest.mark.parametrize(
    "text", ["", "x", "a = b + c(d, e) * [f, g]", "| a | b | c | d |", "0x00 0x01 0x02 the end 0x03 0x04"]
)
def test_not_prose(text):
    assert not is_prose(text)


def test_normalised_ignores_case_digits_and_punctuation():
    assert normalised("The  value, 12 of\nthem.") == normalised("the value of them")
    assert normalised("one thing") != normalised("another thing")


def test_docstrings_are_found_without_pythons_grammar():
    source = "\n".join([
        '"""Module."""', "# not \"\"\"this\"\"\"", "x = 'it''s \"\"\" not'", 'def f():', '    r"""Raw \\d and \\n."""',
        'f"""{x} no"""', "b'''no'''", "add_doc(torch.abs, '''A call's own.\n''')",
        'y = "a\\"" + """An \\x41 \\u00e9 \\N{DASH}\\', 'joined\\t"""',
        "match x: type Y = f'{f'{1}'}' # a syntax of the future", 'z = """never closed',
    ])  # fmt: skip
    assert list(python_text.docstrings(source)) == [
        "Module.", "Raw \\d and \\n.", "A call's own.\n", "An A é \\N{DASH}joined\t",
    ]  # fmt: skip


def test_comments_on_consecutive_lines_are_one_text():
    source = "#!/usr/bin/python\n\n# one\n#   two\nx = 1  # three\n# four\n\n# five '''\ny = '# not'\n"
    assert list(python_text.comments(source)) == ["/usr/bin/python", "one\n  two", "three", "four", "five '''"]


def test_escapes():
    assert python_text.unescaped(r"\a\\\'\"\101\x41\u0041\U00000041\d\N{A}") == "\a\\'\"AAAA\\d\\N{A}"
    assert python_text.unescaped("\\U0010ffff\\U00110000") == "\U0010ffff\\U00110000"
