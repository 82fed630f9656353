"""A data spec with every stored condition, and a prior of representations."""

import pytest

from rcg_lightning.pretrained.codecs import Representations
from rcg_lightning.types import DataSpec


@pytest.fixture
def spec():
    """10 classes, 6-d representations of encoder-1, clusters of 600, 300 and 100 images, and instances."""
    columns = {
        "representation": {"shape": [6]},
        "cluster": {"shape": [], "sizes": [600, 300, 100]},
        "instance": {"shape": [6]},
    }
    return DataSpec((1, 8, 8), 10, columns, {"representation": "encoder-1", "instance": "encoder-1"})


@pytest.fixture
def bare_spec():
    """Images only."""
    return DataSpec((1, 8, 8))


@pytest.fixture
def built(spec):
    """Build a condition for a data spec, by default the full one."""

    def build(condition, given=spec):
        condition.parts(given)
        return condition

    return build


@pytest.fixture
def prior(make_stage, awake, save, tmp_path, spec):
    """Make a generator of representations and its checkpoint."""

    def make(condition=None, given=spec, name="prior.ckpt"):
        stage = awake(make_stage(condition, codec=Representations()).build(given)).eval()
        return stage, save(stage, tmp_path / name)

    return make
