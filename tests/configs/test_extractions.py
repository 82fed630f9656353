"""Every extraction config, run on tiny data in the real format with tiny networks."""

import pytest
import timm
import torch

from helpers.autoencoders import save_kl, save_vq
from helpers.offline import COUNT
from rcg_lightning.cli import main as cli
from rcg_lightning.data.store import Store
from rcg_lightning.networks.vqgan import VQGAN

VIEWS = {
    "imagenet256/extract": (8, None),
    "imagenet64/extract": (2, None),
    "imagenet256/mage_extract": (1, "tokens"),
    "imagenet256/dit_extract": (8, "latent"),
    "imagenet256/ldm_extract": (8, "latent"),
}
SAVED = {"mage": save_vq, "ldm": lambda folder, **more: save_vq(folder, VQGAN, **more), "dit": save_kl}


@pytest.mark.parametrize("name", VIEWS)
def test_an_extraction_writes_the_views_that_its_data_name(name, data_options, offline, tmp_path):
    views, column = VIEWS[name]
    encoder = [f"--encoder.weights={offline / 'vit.pth.tar'}", "--encoder.heads=12"]
    words = [*data_options(name), *encoder, "--accelerator=cpu", f"--out={tmp_path / 'store'}"]
    if column is not None:
        words += ["--data.transform.size=8", "--data.source.limit=10"]
        words += [f"--codec.folder={SAVED[name.split('/')[1].partition('_')[0]](tmp_path / 'it', channels=3)}"]
    assert cli.main(["extract", "--config", name, *words]) == 0
    store = Store.open(tmp_path / "store")
    assert (store.views, store.columns["representation"]["shape"]) == (views, [16])
    assert store.columns.keys() == {"representation", *([column] if column else [])}


def test_features_of_images_with_tags_are_extracted(data_options, tmp_path):
    small = ["--encoder.name=test_vit", "--encoder.pretrained=false", "--data.transform.size=32", "--accelerator=cpu"]
    words = ["extract", "--config", "mirflickr/extract", *data_options("mirflickr/extract"), *small]
    for split in ("train", "eval"):
        assert cli.main([*words, f"--split={split}", f"--out={tmp_path / split}"]) == 0
    assert Store.open(tmp_path / "train").size + Store.open(tmp_path / "eval").size == COUNT


def test_the_features_for_tags_have_the_published_dimension():
    with torch.device("meta"):
        network = timm.create_model("vgg16", num_classes=0)
        assert network(torch.zeros(1, 3, 224, 224)).shape == (1, 4096)
    assert network.head_hidden_size == 4096
