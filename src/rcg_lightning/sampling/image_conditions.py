"""Conditions from given images: their representations, for variations of an image or interpolation of two."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from rcg_lightning.core.interpolation import lerp, slerp
from rcg_lightning.data.decode import Unreadable, decode, image_bytes
from rcg_lightning.data.transforms import CenterCrop
from rcg_lightning.errors import UserError
from rcg_lightning.evaluation.image_grid import image_grid
from rcg_lightning.evaluation.sample_readers import Samples
from rcg_lightning.pretrained.encoders import Encoder
from rcg_lightning.sampling.loading import same_encoder
from rcg_lightning.stages.generator import Generator
from rcg_lightning.types import require, to_uint8

Interpolation = Literal["slerp", "lerp"]
SHOWN = 9  # samples in a row of a grid


@dataclass(frozen=True, eq=False)
class Variations:
    """Conditions for ``count`` variations of each image.

    Attributes:
        originals: the images in the generator's shape, (m, C, H, W) uint8.
        conditions: (m · count, R), one image after the other.
    """

    originals: Tensor
    conditions: Tensor

    def grid(self, samples: Samples) -> Image.Image:
        """Draw a row for each image: the image itself, then its first variations."""
        count = len(self.conditions) // len(self.originals)
        rows = [
            torch.cat([original[None], samples.part(i * count, (i + 1) * count).first(SHOWN)])
            for i, original in enumerate(self.originals)
        ]
        return Image.fromarray(image_grid(torch.cat(rows), len(rows[0])))


@dataclass(frozen=True, eq=False)
class Interpolated:
    """Conditions on the way from one image to another.

    Attributes:
        originals: the two images in the generator's shape, (2, C, H, W) uint8.
        conditions: (n, R), evenly spaced, both ends included.
    """

    originals: Tensor
    conditions: Tensor

    def grid(self, samples: Samples) -> Image.Image:
        """Draw one row: the first image, samples evenly chosen on the way, the second image."""
        positions = torch.linspace(0, samples.count - 1, min(SHOWN, samples.count)).round().int().tolist()
        chosen = [samples.part(i, i + 1).first(1) for i in positions]
        row = torch.cat([self.originals[:1], *chosen, self.originals[1:]])
        return Image.fromarray(image_grid(row, len(row)))


def variations(generator: Generator, encoder: Encoder | None, images: Sequence[Path], count: int) -> Variations:
    """Return conditions for ``count`` variations of each image.

    Raises:
        UserError: the encoder is missing or another one than in the generator's training; an image cannot be read.
    """
    read, representations = _encoded(generator, encoder, images)
    return Variations(read, representations.repeat_interleave(count, dim=0))


def interpolated(
    generator: Generator, encoder: Encoder | None, images: Sequence[Path], count: int, interpolation: Interpolation
) -> Interpolated:
    """Return ``count`` conditions from the first image to the second; errors as in ``variations``."""
    require(len(images) == 2, "--interpolate takes two images")
    read, (first, last) = _encoded(generator, encoder, images)
    function = {"slerp": slerp, "lerp": lerp}[interpolation]
    return Interpolated(read, function(first, last, torch.linspace(0, 1, count)))


def _encoded(generator: Generator, encoder: Encoder | None, images: Sequence[Path]) -> tuple[Tensor, Tensor]:
    """Return images (n, C, H, W) uint8, and their representations (n, R) by the encoder of the generator's training."""
    if encoder is None:
        needed = "--variations-of and --interpolate need --encoder"
        raise UserError(f"{needed}, the encoder with which the generator was trained")
    same_encoder(generator, encoder.identity, "--encoder")
    assert generator.spec is not None
    read = torch.cat([_read(image, generator.spec.image) for image in images])
    return to_uint8(read), encoder(read)


def _read(image: Path, shape: tuple[int, int, int]) -> Tensor:
    """Read an image in the shape of the generator's data: (1, C, H, W) in [0, 1]."""
    channels, height, width = shape
    require(height == width, f"only square images can be encoded here, the generator's images are {height}x{width}")
    try:
        decoded = decode(image_bytes(image), channels)
    except (OSError, Unreadable) as error:
        raise UserError(f"{image} cannot be read as an image ({error}): give another image") from error
    return CenterCrop(height)(decoded)[None] / 255
