import pytest


@pytest.fixture(autouse=True)
def _own_cache(own_cache):
    """No test here touches the user's cache."""
