"""IC-GAN's configs beyond training: extraction of features, neighbours, evaluation subsets."""

import pytest
import timm
import torch
from test_experiments import full_size, read

from helpers.offline import CLASSES, COUNT, data_of
from rcg_lightning.cli import main as cli
from rcg_lightning.cli.parsing import call
from rcg_lightning.data.store import Store

ENCODERS = {
    "imagenet64/icgan_extract": "swav",
    "imagenet128/icgan_extract": "swav",
    "imagenet256/icgan_extract": "swav",
    "imagenet256/icgan_class_extract": "resnet",
    "imagenetlt64/icgan_extract": "resnet",
    "coco128/icgan_extract": "swav",
    "coco256/icgan_extract": "swav",
}


@pytest.mark.parametrize("name", ENCODERS)
def test_a_config_extracts_what_the_official_code_conditions_on(name, data_options):
    def taken(data, encoder, floats="float32"):
        return data, encoder, floats

    taken.__annotations__ = {"data": data_of.__annotations__["data"], "encoder": data_of.__annotations__["encoder"]}
    data, encoder, floats = call(taken, "extract", ["--config", name, *data_options(name)])
    assert ENCODERS[name] in str(encoder.weights)
    assert type(encoder.normalise).__name__ == "UnitLength"
    assert data.views.flips
    assert floats == "float16"


def test_extraction_neighbours_and_the_first_step_fit_together(data_options, tmp_path):
    """Run the commands that the configs name, on COCO-Stuff, at small sizes."""
    torch.manual_seed(0)
    network = timm.create_model("resnet50", num_classes=0).state_dict()
    torch.save({f"module.{name}": tensor for name, tensor in network.items()}, tmp_path / "swav.pth.tar")
    words = [
        "--config",
        "coco128/icgan_extract",
        *data_options("coco128/icgan"),
        f"--encoder.weights={tmp_path / 'swav.pth.tar'}",
    ]
    words += ["--data.source.limit=6", "--accelerator=cpu"]
    assert cli.main(["extract", *words, f"--out={tmp_path / 'store'}"]) == 0
    store = Store.open(tmp_path / "store")
    assert (store.size, store.views, store.columns["representation"]["shape"]) == (6, 2, [2048])
    found = ["--k=3", f"--store={tmp_path / 'store'}", "--accelerator=cpu", f"--out={tmp_path / 'near'}"]
    assert cli.main(["neighbours", *found]) == 0
    assert Store.open(tmp_path / "near").read("neighbours", [0, 5])[:, 0].tolist() == [0, 5]


@pytest.mark.parametrize(("subset", "count"), [("eval", COUNT), ("seen", COUNT // 2), ("unseen", COUNT // 2)])
def test_subsets_of_coco_stuff_by_the_command_line(subset, count, data_options):
    data = call(
        data_of, "data", ["--config", "coco128/data", *data_options("coco128/data"), f"--data.source.subset={subset}"]
    )
    assert len(data.images("eval")) == count
    assert len(data.images("train")) == COUNT


def test_strata_of_imagenet_lt_by_the_command_line(data_options):
    words = ["--config", "imagenetlt64/data", *data_options("imagenetlt64/data"), "--data.source.stratum=few"]
    data = call(data_of, "data", words)
    assert len(data.images("eval")) == COUNT // 2 + 3  # both classes are few here
    assert data.spec.classes == len(CLASSES)


@pytest.mark.parametrize(
    ("name", "generator", "discriminator"),
    [("imagenet256/icgan", 90.1, 100.9), ("imagenet256/icgan_class", 92.4, 100.0)],
)
def test_networks_have_the_sizes_of_the_official_files(name, generator, discriminator, monkeypatch):
    stage = full_size(name, read(name, monkeypatch))
    pairs = ((stage.generator, stage.conditioner), (stage.discriminator, stage.discriminator_conditioner))
    in_generator, in_discriminator = (
        sum(t.numel() for m in pair for t in m.state_dict().values()) / 1e6 for pair in pairs
    )
    assert in_generator + (0 if "class" in name else 0.128) == pytest.approx(
        generator, abs=0.06
    )  # its unused class table
    assert in_discriminator == pytest.approx(discriminator, abs=0.06)
