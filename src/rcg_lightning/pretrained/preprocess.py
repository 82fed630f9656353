"""Preprocessing: from an image in [0, 1] to the input of an encoder's network."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rcg_lightning.arguments import ImageSize, PositiveFloat, UnitInterval
from rcg_lightning.config import ConfigMixin
from rcg_lightning.types import require

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Preprocess(ConfigMixin, nn.Module):
    """Subtract a mean, divide by a deviation, then resize: (B, C, H, W) in [0, 1] -> (B, len(mean), size, size).

    A grey image is repeated to the channels that the network expects. The resize stretches the image. Its result is not
    clamped, as in the official code, so a bicubic resize may leave the range a little.

    Args:
        mean: for each channel of the network.
        std: for each channel of the network.
        size: height and width that the network expects; None leaves the image's size.
        antialias: smooth before shrinking. The official code does not; smoothing changes features by about 1 %.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Sequence[UnitInterval] = IMAGENET_MEAN,
        std: Sequence[PositiveFloat] = IMAGENET_STD,
        size: ImageSize | None = None,
        antialias: bool = False,
    ) -> None:
        super().__init__()
        require(0 < len(mean) == len(std), f"mean and std need one value for each channel, got {mean} and {std}")
        self.size, self.antialias = size, antialias
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)  # (C, 1, 1)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)  # (C, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Image (B, C, H, W) float in [0, 1] -> (B, len(mean), size, size)."""
        channels = len(self.mean)
        require(image.is_floating_point(), f"an encoder takes images as float in [0, 1], got {image.dtype}")
        require(
            image.shape[1] in (1, channels),
            f"the encoder takes {channels}-channel images, got {image.shape[1]} channels: set the data's channels",
        )
        return self.prepare(image.expand(-1, channels, -1, -1))

    def prepare(self, image: Tensor) -> Tensor:
        """Image (B, len(mean), H, W) in [0, 1] -> input of the network."""
        image = self.normalise(image)
        if self.size is None or image.shape[-2:] == (self.size, self.size):
            return image
        size = (self.size, self.size)
        return F.interpolate(image, size, mode="bicubic", align_corners=False, antialias=self.antialias)

    def normalise(self, image: Tensor) -> Tensor:
        """Subtract the mean and divide by the deviation of each channel."""
        return (image - self.mean) / self.std
