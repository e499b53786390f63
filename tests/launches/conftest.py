"""What the tests of launches share."""

import os

import pytest

from tests.launches.rows import Rows


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    # Test processes have a folder each, in one that is theirs together.
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    return Rows(shared / "launches")
