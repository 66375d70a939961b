"""The kernels must be there wherever a compiler is; only where none is installed may their tests be skipped."""

import pytest

from lookupffn.ops import cpu
from lookupffn.ops.cpu.build import BuildError, find_compiler


@pytest.fixture(scope="session")
def kernels():
    try:
        find_compiler()
    except BuildError as error:
        pytest.skip(str(error))
    assert cpu.available(), cpu.unavailable_reason()
