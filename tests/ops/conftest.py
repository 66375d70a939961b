"""The kernels must be there wherever a compiler is; only where none is installed may their tests be skipped."""

import pytest

from lookupffn.ops.build import BuildError, find_compiler
from lookupffn.ops.library import KERNELS


@pytest.fixture(scope="session")
def kernels():
    try:
        find_compiler()
    except BuildError as error:
        pytest.skip(str(error))
    assert KERNELS.available(), KERNELS.unavailable_reason()
