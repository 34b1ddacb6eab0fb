import pytest

from core.db import Database
from tests.service.core.world import World, make_world


@pytest.fixture
def world(database: Database) -> World:
    """A tenant with a data set that is ready, once on each kind of database."""
    return make_world(database)
