"""Every generator samples on the pretended device: no waits in a tile, and the images of the CPU."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from helpers.device_stages import AUTOENCODERS, GENERATORS, GUIDED, PRIORS
from helpers.pretended.device import recorded
from rcg_lightning.cli.sample import sample
from rcg_lightning.data.store import Store
from rcg_lightning.stages.adversarial import AdversarialStage
from rcg_lightning.stages.diffusion import DiffusionStage
from rcg_lightning.stages.masked import MaskedStage

NUMBER = 20  # of tiles of 8: three


@pytest.fixture
def tiles(monkeypatch):
    """What happens on the device in each tile, by generator: the first moves frozen networks there."""
    records = defaultdict(list)

    def watch(owner, name):
        plain = getattr(owner, name)

        def watched(self, *args, **kwargs):
            with recorded() as record:
                result = plain(self, *args, **kwargs)
            records[id(self)].append(record)
            return result

        monkeypatch.setattr(owner, name, watched)

    for kind in (DiffusionStage, MaskedStage, AdversarialStage):
        watch(kind, "sample_z")
    return records


@pytest.fixture
def options(fitted, frozen_networks):
    """Return what `rcg sample` needs to sample from a generator."""

    def given(name, precision):
        prior = fitted(PRIORS[name], precision).last if name in PRIORS else None
        autoencoder = getattr(frozen_networks, AUTOENCODERS[name]) if name in AUTOENCODERS else None
        guidance = 1.5 if name in GUIDED else None
        return {"prior": prior, "autoencoder": autoencoder, "guidance": guidance, "png": False, "grid": False}

    return given


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", GENERATORS)
def test_a_tile_never_waits_and_samples_are_those_of_the_cpu(name, precision, fitted, options, tiles, tmp_path):
    run, settings = fitted(name, precision), options(name, precision)
    tiles.clear()  # validation samples too
    sample(run.last, tmp_path / "there", NUMBER, precision=precision, **settings)
    waits = sum((record.waits for records in tiles.values() for record in records[1:]), Counter())
    assert not waits, f"the host waits inside a tile: {dict(waits)}"
    assert len(tiles) == 1 + (name in PRIORS)
    assert all(len(records) > 1 for records in tiles.values())
    there = columns(tmp_path / "there" / "store")
    assert all(np.isfinite(values).all() for values in there.values())
    if precision == "32-true":
        sample(run.last, tmp_path / "here", NUMBER, accelerator="cpu", **settings)
        for key, values in columns(tmp_path / "here" / "store").items():
            tolerance = 1 if values.dtype == np.uint8 else 1e-4
            np.testing.assert_allclose(there[key].astype(float), values.astype(float), rtol=0, atol=tolerance)


def columns(folder):
    """Return the columns of a store."""
    store = Store.open(folder)
    return {name: store.whole(name) for name in store.columns}
