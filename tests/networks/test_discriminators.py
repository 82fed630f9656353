import pytest
import torch

from rcg_lightning.errors import UserError
from rcg_lightning.networks.discriminators import PatchDiscriminator


@pytest.mark.parametrize(("side", "layers", "patches"), [(8, 1, 2), (28, 2, 5), (32, 3, 2), (64, 3, 6)])
def test_each_patch_has_a_logit(side, layers, patches):
    network = PatchDiscriminator(4, layers)
    network.build((3, side, side), 0)
    assert network(torch.randn(2, 3, side, side), torch.zeros(2, 0)).shape == (2, 1, patches, patches)


@pytest.mark.parametrize(("layers", "patch_width"), [(1, 16), (3, 70)])
def test_a_patch_has_the_documented_width(layers, patch_width):
    network = PatchDiscriminator(4, layers)
    network.build((1, 128, 128), 0)
    for module in network.net:
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda x: x  # a norm reads the whole map
    image = torch.randn(1, 1, 128, 128, requires_grad=True)
    logits = network(image, torch.zeros(1, 0))
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    is_read = image.grad[0, 0].abs().sum(0) > 0
    assert int(is_read.sum()) == patch_width


def test_small_images_and_conditions_are_rejected():
    with pytest.raises(UserError, match="halved 1 times"):
        PatchDiscriminator(4, 2).build((1, 8, 8), 0)
    with pytest.raises(UserError, match="no condition"):
        PatchDiscriminator(4, 1).build((1, 8, 8), 5)
