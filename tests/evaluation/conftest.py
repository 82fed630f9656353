import pytest


@pytest.fixture(autouse=True)
def _own_cache(own_cache):
    """Keep these tests out of the user's cache."""
