"""Resize, crop and flip: from an image of any size to the pixels of a batch.

Images are uint8 (C, H, W). They are resized by torch's 8-bit kernel, which is several times as fast as Pillow. The
official code uses Pillow; the two differ by at most 2 of 255, on average by 0.003. ``pillow`` switches to Pillow.

Every transform has a deterministic version, for evaluation, and may have a random one. The random version is a function
of given uniform numbers, so a seed reproduces its image.
"""

import math
from abc import abstractmethod

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from rcg_lightning.arguments import ImageSize, NonNegativeInt, PositiveFloat, Share
from rcg_lightning.config import ConfigMixin
from rcg_lightning.data.decode import to_pil, to_tensor
from rcg_lightning.types import require

Shape = tuple[int, int, int]


class Transform(ConfigMixin):
    """Base of transforms: ``flip`` mirrors half of the images in training."""

    n_random = 0  # how many uniform numbers the random version takes
    size: int | None = None  # height and width of the result; None: those of the image

    def __init__(self, flip: bool = False) -> None:
        self.flip = flip

    @property
    def random(self) -> bool:
        """Whether training uses more than the deterministic version."""
        return self.flip or self.n_random > 0

    @abstractmethod
    def apply(self, image: Tensor, u: np.ndarray | None) -> Tensor:
        """Resize and crop: at random by ``u`` (n_random,) in [0, 1), or the deterministic version for None."""

    @abstractmethod
    def describe(self, random: bool) -> str:
        """Describe the pixels of the random or the deterministic version: part of a store's identity."""

    def __call__(self, image: Tensor, u: np.ndarray | None = None, mirror: bool = False) -> Tensor:
        """Apply the transform to ``image``, then mirror it where ``mirror`` is set."""
        transformed = self.apply(image, u)
        return transformed.flip(2) if mirror else transformed

    def shape(self, channels: int, image: Shape | None) -> Shape:
        """Return (C, H, W) of the result; ``image`` is the shape of all images, None where they differ."""
        if self.size is not None:
            return (channels, self.size, self.size)
        require(
            image is not None,
            "the images may differ in size: choose a transform with a size, such as CenterCrop",
        )
        assert image is not None
        return image


class AsIs(Transform):
    """Images unchanged, for data sets whose images all have the right size."""

    def apply(self, image: Tensor, u: np.ndarray | None) -> Tensor:
        return image

    def describe(self, random: bool) -> str:
        return "as is"


class Resized(Transform):
    """Base of the transforms that resize (bicubic, antialiased).

    Args:
        size: height and width of the result.
        flip: mirror half of the images in training.
        pillow: resize by Pillow: bit-equal to the official code, but several times slower.
    """

    size: int

    def __init__(self, size: ImageSize, flip: bool = False, pillow: bool = False) -> None:
        super().__init__(flip)
        self.size, self.pillow = size, pillow

    def resize_to(self, image: Tensor, width: int, height: int) -> Tensor:
        """Resize the whole image."""
        if (image.shape[2], image.shape[1]) == (width, height):
            return image
        if self.pillow:
            return to_tensor(to_pil(image.numpy()).resize((width, height), Image.Resampling.BICUBIC))
        return F.resize(image, [height, width], InterpolationMode.BICUBIC, antialias=True)

    @property
    def _resizer(self) -> str:
        """The end of a description."""
        return ", by Pillow" if self.pillow else ""


class Squash(Resized):
    """The whole image, resized to a square of ``size``; the aspect ratio is lost."""

    def apply(self, image: Tensor, u: np.ndarray | None) -> Tensor:
        return self.resize_to(image, self.size, self.size)

    def describe(self, random: bool) -> str:
        return f"squashed to {self.size}{self._resizer}"


class CenterCrop(Resized):
    """The central square of an image whose shorter side was resized to ``resize`` (default: ``size``).

    Agrees with torchvision's ``Resize(resize, BICUBIC)`` and ``CenterCrop(size)``.
    """

    def __init__(
        self, size: ImageSize, resize: ImageSize | None = None, flip: bool = False, pillow: bool = False
    ) -> None:
        super().__init__(size, flip, pillow)
        self.resize = size if resize is None else resize
        require(self.resize >= size, f"a crop of {size} does not fit into an image resized to {self.resize}")

    def apply(self, image: Tensor, u: np.ndarray | None) -> Tensor:
        image = self.resize_shorter_side(image)
        height, width = image.shape[1:]
        return crop(image, round((width - self.size) / 2.0), round((height - self.size) / 2.0), self.size)

    def resize_shorter_side(self, image: Tensor) -> Tensor:
        """Resize the image so that its shorter side is ``resize``."""
        height, width = image.shape[1:]
        if width <= height:
            return self.resize_to(image, self.resize, int(self.resize * height / width))
        return self.resize_to(image, int(self.resize * width / height), self.resize)

    def describe(self, random: bool) -> str:
        return f"shorter side {self.resize}, centre {self.size}{self._resizer}"


class RandomCrop(CenterCrop):
    """CenterCrop, but in training at a random position: the official augmentation of RDM, DiT, LDM and ADM."""

    n_random = 2

    def apply(self, image: Tensor, u: np.ndarray | None) -> Tensor:
        if u is None:
            return super().apply(image, None)
        image = self.resize_shorter_side(image)
        left, top = (int(v * (side - self.size + 1)) for v, side in zip(u, (image.shape[2], image.shape[1])))
        return crop(image, left, top, self.size)

    def describe(self, random: bool) -> str:
        return f"shorter side {self.resize}, random {self.size}{self._resizer}" if random else super().describe(False)


class RandomResizedCrop(CenterCrop):
    """In training a box of random area and aspect ratio, resized to ``size``; in evaluation CenterCrop.

    ``scale`` is the range of the box's area as a fraction of the image, ``ratio`` the range of width to height. As in
    torchvision, the first of ten random boxes that fits is taken, or else the largest central one.
    """

    n_random = 40

    def __init__(
        self,
        size: ImageSize,
        scale: tuple[Share, Share] = (0.2, 1.0),
        ratio: tuple[PositiveFloat, PositiveFloat] = (3 / 4, 4 / 3),
        resize: ImageSize | None = None,
        flip: bool = False,
        pillow: bool = False,
    ) -> None:
        super().__init__(size, resize, flip, pillow)
        self.scale = (scale[0], scale[1])
        self.ratio = (ratio[0], ratio[1])
        require(scale[0] <= scale[1], f"RandomResizedCrop: scale should ascend, not {scale}")
        require(ratio[0] <= ratio[1], f"RandomResizedCrop: ratio should ascend, not {ratio}")

    def apply(self, image: Tensor, u: np.ndarray | None) -> Tensor:
        if u is None:
            return super().apply(image, None)
        left, top, right, bottom = self._box((image.shape[2], image.shape[1]), u)
        return self.resize_to(image[:, top:bottom, left:right], self.size, self.size)

    def _box(self, image: tuple[int, int], u: np.ndarray) -> tuple[int, int, int, int]:
        width, height = image
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for u_area, u_ratio, x, y in u.reshape(-1, 4):
            area = width * height * (self.scale[0] + u_area * (self.scale[1] - self.scale[0]))
            ratio = math.exp(low + u_ratio * (high - low))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
                return left, top, left + w, top + h
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h

    def describe(self, random: bool) -> str:
        text = f"random box of area {self.scale[0]}-{self.scale[1]} and ratio {self.ratio[0]:.4f}-{self.ratio[1]:.4f}"
        return f"{text} resized to {self.size}{self._resizer}" if random else super().describe(False)


class Views(ConfigMixin):
    """A fixed set of views of every image, so that their representations can be stored.

    There are ``crops`` random crops, the same for the same image and ``seed`` (0: the deterministic version alone).
    ``flips`` doubles them: view v is then crop ``v // 2``, mirrored where v is odd. Without flips, view v is crop v.
    """

    def __init__(self, crops: NonNegativeInt = 0, flips: bool = False, seed: int = 0) -> None:
        self.crops = crops
        self.flips = flips
        self.seed = seed

    @property
    def count(self) -> int:
        """The number of views of each image."""
        return max(self.crops, 1) * (2 if self.flips else 1)

    def describe(self, transform: Transform) -> str:
        """Describe the pixels of these views under ``transform``: part of a store's identity."""
        text = transform.describe(self.crops > 0)
        if self.crops:
            text += f", {self.crops} crops of seed {self.seed}"
        return text + (", and mirrored" if self.flips else "")


def crop(image: Tensor, left: int, top: int, size: int) -> Tensor:
    """Cut a square out of an image (C, H, W)."""
    return image[:, top : top + size, left : left + size]
