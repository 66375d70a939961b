"""The C++ encoder must be there wherever a compiler is; only where none is installed may its own tests be skipped."""

import pytest

from lookupffn.inference.native import LIBRARY
from lookupffn.ops.build import BuildError, find_compiler


@pytest.fixture(scope="session")
def native():
    try:
        find_compiler()
    except BuildError as error:
        pytest.skip(str(error))
    assert LIBRARY.available(), LIBRARY.unavailable_reason()
