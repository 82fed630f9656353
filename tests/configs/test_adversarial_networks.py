"""The networks of the adversarial family by their configs: built at full size without memory, sizes as published."""

from pathlib import Path

import pytest
import torch
import yaml

from rcg_lightning.config import construct

CONFIGS = Path(__file__).parents[2] / "configs" / "network"
SHAPES = {
    "biggan_mnist": (1, 28, 28),
    "biggan_cifar10": (3, 32, 32),
    "biggan_64": (3, 64, 64),
    "biggan_128": (3, 128, 128),
    "biggan_256": (3, 256, 256),
    "biggan_256_half": (3, 256, 256),
    "biggan_coco": (3, 128, 128),
    "stylegan2_mnist": (1, 28, 28),
    "stylegan2_256": (3, 256, 256),
    "cgan_images": (1, 28, 28),
    "cgan_tags": (200,),
}
# discriminator's condition; the official lists of tensors say 1536 and 1024 too
WIDTHS = {"biggan_256": 1536, "biggan_256_half": 1024, "cgan_images": 250, "cgan_tags": 1200, "stylegan2_256": 512}


def test_every_config_is_known_here():
    found = {path.stem for kind in ("biggan", "stylegan2", "cgan") for path in CONFIGS.glob(f"{kind}_*.yaml")}
    assert found == {f"{name}_{role}" for name in SHAPES for role in ("generator", "discriminator")}


@pytest.mark.parametrize("name", SHAPES)
def test_both_networks_fit_each_other(name):
    generator, discriminator = (
        construct(yaml.safe_load((CONFIGS / f"{name}_{role}.yaml").read_text()))
        for role in ("generator", "discriminator")
    )
    shape = SHAPES[name]
    width = discriminator.condition_width(shape)
    assert width == WIDTHS.get(name, width)
    with torch.device("meta"):
        for network in (generator, discriminator):
            network.build(shape, network.condition_width(shape))
        made = generator(torch.zeros(2, generator.noise_dim), torch.zeros(2, generator.condition_width(shape)))
        assert made.shape == (2, *shape)
        assert discriminator(made, torch.zeros(2, width)).shape == (2,)
