"""Convolutional backbones for small images, from 8 x 8 digits to CIFAR."""

import math
from collections.abc import Sequence

import torchvision
from torch import Tensor, nn

from rcg_lightning.arguments import ImageSize, PositiveInt, Width
from rcg_lightning.config import ConfigMixin
from rcg_lightning.types import require


class SmallConvNet(ConfigMixin, nn.Module):
    """3 x 3 convolutions with BatchNorm and ReLU, then the mean over positions: (B, C, H, W) -> (B, widths[-1]).

    Args:
        channels: channels of the image.
        size: height and width from which the strides follow; images of other sizes work, with the same strides.
        widths: channels after each convolution.
        strides: one for each convolution; by default those of ``spread_strides``.
    """

    def __init__(
        self,
        channels: Width = 3,
        size: ImageSize = 32,
        widths: Sequence[Width] = (16, 32, 32, 64, 64),
        strides: Sequence[PositiveInt] | None = None,
    ) -> None:
        super().__init__()
        require(len(widths) > 0, "SmallConvNet: widths should hold a width for each convolution, at least one")
        strides = spread_strides(size, len(widths)) if strides is None else strides
        require(len(strides) == len(widths), f"{len(widths)} widths need as many strides, got {len(strides)}")
        inputs = [channels, *widths[:-1]]
        layers: list[nn.Module] = []
        for before, after, stride in zip(inputs, widths, strides):
            layers += [nn.Conv2d(before, after, 3, stride, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)
        self.dim = widths[-1]

    def forward(self, image: Tensor) -> Tensor:
        """Normalised image (B, C, H, W) -> features (B, dim)."""
        return self.forward_features(image).mean((2, 3))

    def forward_features(self, image: Tensor) -> Tensor:
        """Normalised image (B, C, H, W) -> the map before pooling, (B, dim, h, w)."""
        return self.layers(image)


def spread_strides(size: int, layers: int) -> list[int]:
    """Strides that halve ``size`` until 2 to 4 pixels remain, spread evenly over all layers but the first.

    Example: size 8 and 5 layers give [1, 2, 1, 2, 1].
    """
    halvings = min(layers - 1, max(0, int(math.log2(size)) - 1))
    strided = {1 + i * (layers - 1) // halvings for i in range(halvings)}
    return [2 if i in strided else 1 for i in range(layers)]


class ResNet18(ConfigMixin, torchvision.models.ResNet):
    """ResNet-18 for small images, with a 3 x 3 stem without stride and pooling: (B, C, H, W) -> (B, 512).

    Args:
        channels: channels of the image.
    """

    def __init__(self, channels: Width = 3) -> None:
        super().__init__(torchvision.models.resnet.BasicBlock, [2, 2, 2, 2])
        self.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.maxpool = nn.Identity()
        self.fc = nn.Identity()
        self.dim = 512

    def forward_features(self, image: Tensor) -> Tensor:
        """Normalised image (B, C, H, W) -> the map before pooling, (B, 512, h, w)."""
        x = self.relu(self.bn1(self.conv1(image)))  # (B, 64, H, W)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))
