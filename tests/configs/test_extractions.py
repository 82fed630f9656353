"""Every config of an extraction, run on tiny data in the real format with tiny networks."""

import pytest

from autoencoders import save_kl, save_vq
from rcg_lightning import cli
from rcg_lightning.data.store import Store
from rcg_lightning.networks.vqgan import VQGAN

VIEWS = {
    "imagenet256_extract": (8, None),
    "imagenet64_extract": (2, None),
    "imagenet256_mage_extract": (1, "tokens"),
    "imagenet256_dit_extract": (8, "latent"),
    "imagenet256_ldm_extract": (8, "latent"),
}
SAVED = {"mage": save_vq, "ldm": lambda folder, **more: save_vq(folder, VQGAN, **more), "dit": save_kl}


@pytest.mark.parametrize("name", VIEWS)
def test_an_extraction_writes_the_views_that_its_data_name(name, places, offline, tmp_path):
    views, column = VIEWS[name]
    encoder = [f"--encoder.weights={offline / 'vit.pth.tar'}", "--encoder.heads=12"]
    words = [*places(name), *encoder, "--accelerator=cpu", f"--out={tmp_path / 'store'}"]
    if column is not None:
        words += ["--data.geometry.size=8", "--data.source.limit=10"]
        words += [f"--codec.folder={SAVED[name.split('_')[1]](tmp_path / 'it', channels=3)}"]
    assert cli.main(["extract", "--config", name, *words]) == 0
    store = Store.open(tmp_path / "store")
    assert (store.views, store.columns["representation"]["shape"]) == (views, [16])
    assert store.columns.keys() == {"representation", *([column] if column else [])}
