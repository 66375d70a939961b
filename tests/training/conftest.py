import pytest

from tests.training.tiny import Workspace, workspace


@pytest.fixture
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return workspace(tmp_path_factory.getbasetemp())
