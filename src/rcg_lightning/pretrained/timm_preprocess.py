"""timm's evaluation transform, on batches, on any device and with a gradient."""

from collections.abc import Sequence
from math import floor
from typing import Literal

from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as images

from rcg_lightning.arguments import ImageSize, PositiveFloat, UnitInterval
from rcg_lightning.pretrained.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess

CropMode = Literal["center", "squash", "border"]


class TimmPreprocess(Preprocess):
    """Resize as Pillow does, cut out the centre, subtract a mean and divide by a deviation.

    Agrees with ``timm.data.create_transform`` on 8-bit images; others are rounded to 8 bits. Pillow, which resizes
    them there, clamps and rounds the values after each of its two passes. A value exactly between two grey values may
    be rounded to the other one: about 0.01 % of a photograph's values. A gradient passes as if nothing were clamped or
    rounded.

    Args:
        mean: for each channel of the network.
        std: for each channel of the network.
        size: height and width that the network expects.
        crop: fraction of the resized image that is cut out; above 1 the image gets a border instead.
        mode: ``center`` resizes the shorter side to ``size / crop``, ``squash`` both sides, and ``border`` the longer
            side, with a border of the mean.
        interpolation: ``bicubic`` or ``bilinear``, antialiased.
    """

    def __init__(
        self,
        mean: Sequence[UnitInterval] = IMAGENET_MEAN,
        std: Sequence[PositiveFloat] = IMAGENET_STD,
        size: tuple[ImageSize, ImageSize] = (224, 224),
        crop: PositiveFloat = 0.875,
        mode: CropMode = "center",
        interpolation: Literal["bicubic", "bilinear"] = "bicubic",
    ) -> None:
        super().__init__(mean, std)
        self.height, self.width = size
        self.crop, self.mode, self.interpolation = crop, mode, interpolation
        self.border = [round(255 * value) / 255 for value in mean]

    def prepare(self, image: Tensor) -> Tensor:
        return self.normalise(self.cut(self.resize(image)))

    def resize(self, image: Tensor) -> Tensor:
        """Resize (B, C, H, W) in [0, 1] in two passes; the result has 8 bits."""
        before, after = tuple(image.shape[-2:]), self.resized(*image.shape[-2:])
        # Pillow resizes the width first, unless that alone grows
        height_first = after[0] < before[0] and after[1] > before[1]
        between = (after[0], before[1]) if height_first else (before[0], after[1])
        values = _whole(image * 255)
        for target in (between, after):
            if target != tuple(values.shape[-2:]):
                values = _whole(F.interpolate(values, target, mode=self.interpolation, antialias=True))
        return values / 255

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width that an image is resized to, before the crop."""
        target = floor(self.height / self.crop), floor(self.width / self.crop)
        if self.mode == "squash":
            return target
        if self.mode == "border" or target[0] != target[1]:
            ratios = height / target[0], width / target[1]
            ratio = max(ratios) if self.mode == "border" else min(ratios)
            return round(height / ratio), round(width / ratio)
        shorter = min(height, width)  # torchvision's Resize rounds the longer side down
        return int(target[0] * height / shorter), int(target[1] * width / shorter)

    def cut(self, image: Tensor) -> Tensor:
        """Cut out the centre; a smaller image gets a border."""
        if self.mode == "border":
            sides = [max(wanted - found, 0) for wanted, found in zip((self.width, self.height), image.shape[:-3:-1])]
            before, after = [side // 2 for side in sides], [(side + 1) // 2 for side in sides]
            image = images.pad(image, [*before, *after], fill=self.border)
        return images.center_crop(image, [self.height, self.width])


def _whole(values: Tensor) -> Tensor:
    """Clamp to [0, 255] and round half up; the gradient passes unchanged."""
    return values + (values.detach().clamp(0, 255).add(0.5).floor() - values.detach())
