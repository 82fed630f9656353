"""Every generator samples on the pretended device: no waits in a batch, and the images of the CPU."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from helpers.device_stages import AUTOENCODERS, GENERATORS, GUIDED, PRIORS
from helpers.pretended.device import recorded
from rcg_lightning.cli.sample import sample
from rcg_lightning.data.store import Store
from rcg_lightning.stages.generator import Generator

NUMBER, BATCH = 20, 8  # three batches of one tile each


@pytest.fixture
def batches(monkeypatch):
    """What happens on the device while each batch is sampled, by generator: the first moves frozen networks there."""
    records = defaultdict(list)

    plain = Generator.sample

    def watched(self, *args, **kwargs):
        with recorded() as record:
            result = plain(self, *args, **kwargs)
        records[id(self)].append(record)
        return result

    monkeypatch.setattr(Generator, "sample", watched)
    return records


@pytest.fixture
def options(fitted, frozen_networks):
    """Return what `rcg sample` needs to sample from a generator."""

    def given(name, precision):
        prior = fitted(PRIORS[name], precision).last if name in PRIORS else None
        autoencoder = getattr(frozen_networks, AUTOENCODERS[name]) if name in AUTOENCODERS else None
        guidance = 1.5 if name in GUIDED else None
        files = {"png": False, "grid": False, "batch_size": BATCH}
        return {"prior": prior, "autoencoder": autoencoder, "guidance": guidance, **files}

    return given


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", GENERATORS)
def test_sampling_never_waits_and_samples_are_those_of_the_cpu(name, precision, fitted, options, batches, tmp_path):
    run, settings = fitted(name, precision), options(name, precision)
    batches.clear()  # validation samples too
    sample(run.last, tmp_path / "there", NUMBER, precision=precision, **settings)
    waits = sum((record.waits for records in batches.values() for record in records[1:]), Counter())
    assert not waits, f"the host waits while it samples: {dict(waits)}"
    assert len(batches) == 1 + (name in PRIORS)
    assert all(len(records) > 1 for records in batches.values())
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
