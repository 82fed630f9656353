"""Conditions from given images: their representations, for variations of an image or interpolation of two."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from rcg_lightning.core.interpolation import lerp, slerp
from rcg_lightning.data.decode import Unreadable, decode, image_bytes
from rcg_lightning.data.transforms import CenterCrop
from rcg_lightning.errors import UserError
from rcg_lightning.pretrained.encoders import Encoder
from rcg_lightning.sampling.loading import same_encoder
from rcg_lightning.stages.generator import Generator
from rcg_lightning.types import require

Interpolation = Literal["slerp", "lerp"]


def variations(generator: Generator, encoder: Encoder | None, images: Sequence[Path], count: int) -> Tensor:
    """Return conditions (len(images) · count, R): ``count`` per image, one image after the other."""
    return _encoded(generator, encoder, images).repeat_interleave(count, dim=0)


def interpolated(
    generator: Generator, encoder: Encoder | None, images: Sequence[Path], count: int, interpolation: Interpolation
) -> Tensor:
    """Return conditions (count, R), evenly spaced from the first image to the second, both included."""
    require(len(images) == 2, "--interpolate takes two images")
    first, last = _encoded(generator, encoder, images)
    function = {"slerp": slerp, "lerp": lerp}[interpolation]
    return function(first, last, torch.linspace(0, 1, count))


def _encoded(generator: Generator, encoder: Encoder | None, images: Sequence[Path]) -> Tensor:
    """Encode images by the encoder with which the generator was trained; return representations (n, R)."""
    if encoder is None:
        needed = "--variations-of and --interpolate need --encoder"
        raise UserError(f"{needed}, the encoder with which the generator was trained")
    same_encoder(generator, encoder.identity, "--encoder")
    assert generator.spec is not None
    return encoder(torch.cat([_read(image, generator.spec.image) for image in images]))


def _read(image: Path, shape: tuple[int, int, int]) -> Tensor:
    """Read an image in the shape of the generator's data: (1, C, H, W) in [0, 1]."""
    channels, height, width = shape
    require(height == width, f"only square images can be encoded here, the generator's images are {height}x{width}")
    try:
        decoded = decode(image_bytes(image), channels)
    except (OSError, Unreadable) as error:
        raise UserError(f"{image} cannot be read as an image ({error}): give another image") from error
    return CenterCrop(height)(decoded)[None] / 255
