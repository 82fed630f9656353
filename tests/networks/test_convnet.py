import pytest
import torch

from rcg_lightning.config import construct, describe
from rcg_lightning.errors import UserError
from rcg_lightning.networks.convnet import ResNet18, SmallConvNet, spread_strides


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 16), (1, 28), (3, 32), (3, 64)])
def test_the_last_map_has_2_to_4_pixels_a_side(channels, size):
    net = SmallConvNet(channels, size)
    image = torch.rand(2, channels, size, size)
    assert 2 <= net.layers(image).shape[-1] <= 4
    assert net(image).shape == (2, net.dim) == (2, 64)


def test_strides_are_spread_over_the_layers_after_the_first():
    assert spread_strides(8, 5) == [1, 2, 1, 2, 1]
    assert spread_strides(28, 5) == [1, 2, 2, 2, 1]
    assert spread_strides(32, 5) == [1, 2, 2, 2, 2]
    assert spread_strides(64, 3) == [1, 2, 2]
    assert spread_strides(3, 1) == [1]


def test_strides_and_widths_can_be_given():
    net = SmallConvNet(1, 8, widths=[4, 8], strides=[2, 2])
    assert net.layers(torch.rand(1, 1, 8, 8)).shape == (1, 8, 2, 2)
    with pytest.raises(UserError, match="2 widths"):
        SmallConvNet(1, 8, widths=[4, 8], strides=[2])


def test_the_stem_of_resnet_does_not_shrink_small_images():
    net = ResNet18(channels=1).eval()
    with torch.no_grad():
        assert net.layer1(net.maxpool(net.conv1(torch.rand(1, 1, 16, 16)))).shape[-1] == 16
        assert net(torch.rand(1, 1, 16, 16)).shape == (1, net.dim)
    assert describe(construct(describe(net))) == describe(net)
