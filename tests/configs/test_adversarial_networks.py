"""The networks of the adversarial configs: built at full size without memory, sizes as published."""

import pytest
import torch
from test_experiments import EXPERIMENTS, full_size, read

from rcg_lightning.config import construct, describe

ADVERSARIAL = [name for name, path in EXPERIMENTS.items() if "AdversarialStage" in path.read_text()]
# width of the discriminator's condition; the official lists of tensors have 1536 too
WIDTHS = {"imagenet256/icgan": 1536, "mnist/cgan": 250, "mirflickr/tags": 1200, "coco256/icgan_stylegan2": 512}


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_both_networks_fit_each_other(name, monkeypatch):
    stage = full_size(name, read(name, monkeypatch))
    generator, discriminator = (construct(describe(network)) for network in (stage.generator, stage.discriminator))
    shape = stage.codec.shape(stage.spec)
    width = discriminator.condition_width(shape)
    assert width == WIDTHS.get(name, width)
    with torch.device("meta"):
        for network in (generator, discriminator):
            network.build(shape, network.condition_width(shape))
        image = generator(torch.zeros(2, generator.noise_dim), torch.zeros(2, generator.condition_width(shape)))
        assert image.shape == (2, *shape)
        assert discriminator(image, torch.zeros(2, width)).shape == (2,)
