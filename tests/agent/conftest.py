"""A lesson that the tests of agents share."""

from __future__ import annotations

import pytest
from small_lessons import Prepared, prepared_in


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """The lesson of a load that swings."""
    return prepared_in(tmp_path_factory.mktemp("lesson"))
