"""Which part of a picture is seen, at which size: resize, crop and flip with PIL, as the official code does it.

Every geometry has a deterministic version, for evaluation, and may have a random one. The random one is a function of
the uniform numbers it is given, so a picture can be made again from a seed.
"""

import math
from abc import abstractmethod

import numpy as np
from PIL import Image

from rcg_lightning.described import Described
from rcg_lightning.types import require

Shape = tuple[int, int, int]
BICUBIC = Image.Resampling.BICUBIC


class Geometry(Described):
    """Base: ``flip`` mirrors half of the pictures in training."""

    draws = 0  # how many uniform numbers a random placement takes
    size: int | None = None  # height and width of the result; None: whatever the picture has

    def __init__(self, flip: bool = False) -> None:
        self.flip = flip

    @property
    def random(self) -> bool:
        """Whether training sees anything but the deterministic version."""
        return self.flip or self.draws > 0

    @abstractmethod
    def place(self, picture: Image.Image, u: np.ndarray | None) -> Image.Image:
        """Resize and crop; ``u`` (draws,) in [0, 1) chooses, None stands for the deterministic version."""

    @abstractmethod
    def says(self, random: bool) -> str:
        """Describe the pixels of the random or the deterministic version: part of a store's identity."""

    def __call__(self, picture: Image.Image, u: np.ndarray | None = None, mirror: bool = False) -> Image.Image:
        """Return ``picture`` placed, and mirrored where ``mirror`` says so."""
        placed = self.place(picture, u)
        return placed.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirror else placed

    def shape(self, channels: int, picture: Shape | None) -> Shape:
        """Return (C, H, W) of the result, given the shape of the pictures where it is known."""
        if self.size is not None:
            return (channels, self.size, self.size)
        require(
            picture is not None,
            "the pictures of a folder may differ in size: choose a geometry with a size, such as CenterCrop",
        )
        assert picture is not None
        return picture


class AsIs(Geometry):
    """Pictures as they are, for sets whose pictures all have the right size."""

    def place(self, picture: Image.Image, u: np.ndarray | None) -> Image.Image:
        return picture

    def says(self, random: bool) -> str:
        return "as is"


class Squash(Geometry):
    """The whole picture, resized to ``size`` in both directions (bicubic), whatever its proportions."""

    size: int

    def __init__(self, size: int, flip: bool = False) -> None:
        super().__init__(flip)
        self.size = size

    def place(self, picture: Image.Image, u: np.ndarray | None) -> Image.Image:
        return _resize(picture, (self.size, self.size))

    def says(self, random: bool) -> str:
        return f"squashed to {self.size}"


class CenterCrop(Geometry):
    """The shorter side resized to ``resize`` (``size`` unless given; bicubic, antialiased), then the centre.

    Agrees with torchvision's ``Resize(resize, BICUBIC)`` and ``CenterCrop(size)`` on PIL pictures.
    """

    size: int

    def __init__(self, size: int, resize: int | None = None, flip: bool = False) -> None:
        super().__init__(flip)
        self.size = size
        self.resize = size if resize is None else resize
        require(self.resize >= size, f"a crop of {size} does not fit into a picture resized to {self.resize}")

    def place(self, picture: Image.Image, u: np.ndarray | None) -> Image.Image:
        return _centre(_shorter_side(picture, self.resize), self.size)

    def says(self, random: bool) -> str:
        return f"shorter side {self.resize}, centre {self.size}"


class RandomCrop(CenterCrop):
    """Like CenterCrop, but in training the crop lies anywhere: the official augmentation of RDM, DiT, LDM and ADM."""

    draws = 2

    def place(self, picture: Image.Image, u: np.ndarray | None) -> Image.Image:
        if u is None:
            return super().place(picture, None)
        picture = _shorter_side(picture, self.resize)
        left, top = (int(v * (side - self.size + 1)) for v, side in zip(u, picture.size))
        return picture.crop((left, top, left + self.size, top + self.size))

    def says(self, random: bool) -> str:
        return f"shorter side {self.resize}, random {self.size}" if random else super().says(False)


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
    ) -> None:
        super().__init__(size, resize, flip)
        self.scale = (scale[0], scale[1])
        self.ratio = (ratio[0], ratio[1])
        require(0 < scale[0] <= scale[1] <= 1, f"scale is a range of shares of the area within (0, 1], not {scale}")
        require(0 < ratio[0] <= ratio[1], f"ratio is a range of width to height, not {ratio}")

    def place(self, picture: Image.Image, u: np.ndarray | None) -> Image.Image:
        if u is None:
            return super().place(picture, None)
        return _resize(picture.crop(self._box(picture.size, u)), (self.size, self.size))

    def _box(self, picture: tuple[int, int], u: np.ndarray) -> tuple[int, int, int, int]:
        width, height = picture
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
        return f"{text} resized to {self.size}" if random else super().says(False)


class Views(Described):
    """A fixed set of views of every picture, so that what an encoder makes of them can be stored.

    ``crops`` random placements, always the same for one picture and ``seed`` (0: the deterministic version alone), each
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
        """How many views each picture has."""
        return max(self.crops, 1) * (2 if self.flips else 1)

    def says(self, geometry: Geometry) -> str:
        """Describe the pixels of these views under ``geometry``: part of a store's identity."""
        text = geometry.says(self.crops > 0)
        if self.crops:
            text += f", {self.crops} crops of seed {self.seed}"
        return text + (", and mirrored" if self.flips else "")


def _shorter_side(picture: Image.Image, size: int) -> Image.Image:
    width, height = picture.size
    if width <= height:
        return _resize(picture, (size, int(size * height / width)))
    return _resize(picture, (int(size * width / height), size))


def _resize(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    return picture if picture.size == size else picture.resize(size, BICUBIC)


def _centre(picture: Image.Image, size: int) -> Image.Image:
    width, height = picture.size
    left, top = round((width - size) / 2.0), round((height - size) / 2.0)
    return picture.crop((left, top, left + size, top + size))
