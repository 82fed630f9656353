"""Which part of an image is seen, at which size: resize, crop and flip.

Images are uint8 (C, H, W). They are resized by torch's 8-bit kernel, which is several times as fast as Pillow's, the
official code's, and differs from it by 2 of 255 levels at most and 0.003 on average; ``pillow`` switches to Pillow.

Every transform has a deterministic version, for evaluation, and may have a random one. The random one is a function of
the uniform numbers it is given, so an image can be made again from a seed.
"""

import math
from abc import abstractmethod

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from rcg_lightning.config import ConfigMixin
from rcg_lightning.data.decode import to_pil, to_tensor
from rcg_lightning.types import require

Shape = tuple[int, int, int]


class Transform(ConfigMixin):
    """Base: ``flip`` mirrors half of the images in training."""

    draws = 0  # how many uniform numbers a random placement takes
    size: int | None = None  # height and width of the result; None: whatever the image has

    def __init__(self, flip: bool = False) -> None:
        self.flip = flip

    @property
    def random(self) -> bool:
        """Whether training sees anything but the deterministic version."""
        return self.flip or self.draws > 0

    @abstractmethod
    def place(self, image: Tensor, u: np.ndarray | None) -> Tensor:
        """Resize and crop; ``u`` (draws,) in [0, 1) chooses, None stands for the deterministic version."""

    @abstractmethod
    def says(self, random: bool) -> str:
        """Describe the pixels of the random or the deterministic version: part of a store's identity."""

    def __call__(self, image: Tensor, u: np.ndarray | None = None, mirror: bool = False) -> Tensor:
        """Return ``image`` placed, and mirrored where ``mirror`` says so."""
        placed = self.place(image, u)
        return placed.flip(2) if mirror else placed

    def shape(self, channels: int, image: Shape | None) -> Shape:
        """Return (C, H, W) of the result, given the shape of the images where it is known."""
        if self.size is not None:
            return (channels, self.size, self.size)
        require(
            image is not None,
            "the images of a folder may differ in size: choose a transform with a size, such as CenterCrop",
        )
        assert image is not None
        return image


class AsIs(Transform):
    """Images as they are, for sets whose images all have the right size."""

    def place(self, image: Tensor, u: np.ndarray | None) -> Tensor:
        return image

    def says(self, random: bool) -> str:
        return "as is"


class Resized(Transform):
    """Base of those that resize (bicubic, antialiased).

    Args:
        size: height and width of the result.
        flip: mirror half of the images in training.
        pillow: resize by Pillow, bit-equal to the official code and several times slower.
    """

    size: int

    def __init__(self, size: int, flip: bool = False, pillow: bool = False) -> None:
        super().__init__(flip)
        self.size, self.pillow = size, pillow

    def resize_to(self, image: Tensor, width: int, height: int) -> Tensor:
        """Return the whole image at another size."""
        if (image.shape[2], image.shape[1]) == (width, height):
            return image
        if self.pillow:
            return to_tensor(to_pil(image.numpy()).resize((width, height), Image.Resampling.BICUBIC))
        return F.resize(image, [height, width], InterpolationMode.BICUBIC, antialias=True)

    @property
    def by(self) -> str:
        """What ``says`` ends with."""
        return ", by Pillow" if self.pillow else ""


class Squash(Resized):
    """The whole image, resized to ``size`` in both directions, whatever its proportions."""

    def place(self, image: Tensor, u: np.ndarray | None) -> Tensor:
        return self.resize_to(image, self.size, self.size)

    def says(self, random: bool) -> str:
        return f"squashed to {self.size}{self.by}"


class CenterCrop(Resized):
    """The shorter side resized to ``resize`` (``size`` unless given), then the centre.

    Agrees with torchvision's ``Resize(resize, BICUBIC)`` and ``CenterCrop(size)``.
    """

    def __init__(self, size: int, resize: int | None = None, flip: bool = False, pillow: bool = False) -> None:
        super().__init__(size, flip, pillow)
        self.resize = size if resize is None else resize
        require(self.resize >= size, f"a crop of {size} does not fit into an image resized to {self.resize}")

    def place(self, image: Tensor, u: np.ndarray | None) -> Tensor:
        image = self.shorter_side(image)
        height, width = image.shape[1:]
        return cropped(image, round((width - self.size) / 2.0), round((height - self.size) / 2.0), self.size)

    def shorter_side(self, image: Tensor) -> Tensor:
        """Return the image with its shorter side resized to ``resize``."""
        height, width = image.shape[1:]
        if width <= height:
            return self.resize_to(image, self.resize, int(self.resize * height / width))
        return self.resize_to(image, int(self.resize * width / height), self.resize)

    def says(self, random: bool) -> str:
        return f"shorter side {self.resize}, centre {self.size}{self.by}"


class RandomCrop(CenterCrop):
    """Like CenterCrop, but in training the crop lies anywhere: the official augmentation of RDM, DiT, LDM and ADM."""

    draws = 2

    def place(self, image: Tensor, u: np.ndarray | None) -> Tensor:
        if u is None:
            return super().place(image, None)
        image = self.shorter_side(image)
        left, top = (int(v * (side - self.size + 1)) for v, side in zip(u, (image.shape[2], image.shape[1])))
        return cropped(image, left, top, self.size)

    def says(self, random: bool) -> str:
        return f"shorter side {self.resize}, random {self.size}{self.by}" if random else super().says(False)


class RandomResizedCrop(CenterCrop):
    """In training a box of random area and proportions, resized to ``size``; in evaluation like CenterCrop.

    ``scale`` is the range of the box's share of the area, ``ratio`` that of width to height. Like torchvision's it
    tries ten boxes and falls back to the largest central one.
    """

    draws = 40

    def __init__(
        self,
        size: int,
        scale: tuple[float, float] = (0.2, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        resize: int | None = None,
        flip: bool = False,
        pillow: bool = False,
    ) -> None:
        super().__init__(size, resize, flip, pillow)
        self.scale = (scale[0], scale[1])
        self.ratio = (ratio[0], ratio[1])
        require(0 < scale[0] <= scale[1] <= 1, f"scale is a range of shares of the area within (0, 1], not {scale}")
        require(0 < ratio[0] <= ratio[1], f"ratio is a range of width to height, not {ratio}")

    def place(self, image: Tensor, u: np.ndarray | None) -> Tensor:
        if u is None:
            return super().place(image, None)
        left, top, right, bottom = self._box((image.shape[2], image.shape[1]), u)
        return self.resize_to(image[:, top:bottom, left:right], self.size, self.size)

    def _box(self, image: tuple[int, int], u: np.ndarray) -> tuple[int, int, int, int]:
        width, height = image
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for share, proportion, x, y in u.reshape(-1, 4):
            area = width * height * (self.scale[0] + share * (self.scale[1] - self.scale[0]))
            ratio = math.exp(low + proportion * (high - low))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
                return left, top, left + w, top + h
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h

    def says(self, random: bool) -> str:
        text = f"random box of area {self.scale[0]}-{self.scale[1]} and ratio {self.ratio[0]:.4f}-{self.ratio[1]:.4f}"
        return f"{text} resized to {self.size}{self.by}" if random else super().says(False)


class Views(ConfigMixin):
    """A fixed set of views of every image, so that what an encoder makes of them can be stored.

    ``crops`` random placements, always the same for one image and ``seed`` (0: the deterministic version alone), each
    also mirrored where ``flips`` is set: ``count`` views. View v is crop ``v // 2``, mirrored where v is odd, with
    flips; crop v without.
    """

    def __init__(self, crops: int = 0, flips: bool = False, seed: int = 0) -> None:
        require(crops >= 0, f"crops of the views is a number, or 0 for the deterministic version, not {crops}")
        self.crops = crops
        self.flips = flips
        self.seed = seed

    @property
    def count(self) -> int:
        """How many views each image has."""
        return max(self.crops, 1) * (2 if self.flips else 1)

    def says(self, transform: Transform) -> str:
        """Describe the pixels of these views under ``transform``: part of a store's identity."""
        text = transform.says(self.crops > 0)
        if self.crops:
            text += f", {self.crops} crops of seed {self.seed}"
        return text + (", and mirrored" if self.flips else "")


def cropped(image: Tensor, left: int, top: int, size: int) -> Tensor:
    """Return a square of an image (C, H, W)."""
    return image[:, top : top + size, left : left + size]
