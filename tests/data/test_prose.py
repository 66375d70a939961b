import pytest

from lookupffn.data.corpus.prose import is_prose, normalised, paragraphs


def test_wrapped_lines_and_marks():
    text = """Return the :class:`~collections.Counter` of the *given*
        ``items`` as it is described in `the manual <https://example.org>`_.

        Parameters
        ----------
        items : list of str
            The items that are to be counted, in any
            order that you like.
        """
    assert paragraphs(text) == [
        "Return the collections.Counter of the given items as it is described in the manual.",
        "items : list of str The items that are to be counted, in any order that you like.",
    ]


def test_code_is_dropped_and_prose_around_it_kept():
    text = """Compute the sum of all the numbers.

    >>> compute([1, 2, 3])
    6

    The result is exact for whole numbers::

        result = compute(values)
        print(result)

    ```python
    compute(the, numbers, which, are, given)
    ```

    .. code-block:: python

        for value in the_values: compute(value)

    It is slow for very long lists.
    """
    assert paragraphs(text) == [
        "Compute the sum of all the numbers.",
        "The result is exact for whole numbers:",
        "It is slow for very long lists.",
    ]


def test_doctest_that_outweighs_its_words():
    assert paragraphs("See the result of the call here:\n>>> f(1)\n1\n>>> f(2)\n2") == []
    kept = paragraphs(
        "This paragraph has a good deal to say\nabout the function and what it does\nand for whom.\n>>> f(1)"
    )
    assert kept == ["This paragraph has a good deal to say about the function and what it does and for whom."]


@pytest.mark.parametrize(
    "text", ["", "x", "a = b + c(d, e) * [f, g]", "| a | b | c | d |", "0x00 0x01 0x02 the end 0x03 0x04"]
)
def test_not_prose(text):
    assert not is_prose(text)


def test_normalised_ignores_case_digits_and_punctuation():
    assert normalised("The  value, 12 of\nthem.") == normalised("the value of them")
    assert normalised("one thing") != normalised("another thing")
