"""Grids of images, with or without a label before each row."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from rcg_lightning.artifacts import replacing
from rcg_lightning.errors import UserError
from rcg_lightning.types import require

_GROUND, _INK = 255, (30, 30, 30)
_TILE = 56  # small images are enlarged to about this many pixels


def image_grid(images: Tensor, columns: int, scale: int | None = None, gap: int = 2) -> np.ndarray:
    """Arrange images in rows on a white canvas, (H, W, 3) uint8.

    Args:
        images: (N, C, H, W) uint8, C = 1 or 3.
        columns: images per row.
        scale: each pixel becomes a square of scale x scale; by default small images grow to about 56 pixels.
        gap: white pixels between images.
    """
    require(images.dtype == torch.uint8 and images.ndim == 4, "a grid is made of uint8 images (N, C, H, W)")
    scale = scale or max(1, round(_TILE / images.shape[-1]))
    tiles = images.cpu().expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()  # (N, H, W, 3)
    tiles = tiles.repeat(scale, axis=1).repeat(scale, axis=2)
    count, height, width, _ = tiles.shape
    rows = math.ceil(count / columns)
    shape = (rows * (height + gap) - gap, min(columns, count) * (width + gap) - gap, 3)
    canvas = np.full(shape, _GROUND, np.uint8)
    for position, tile in enumerate(tiles):
        top, left = position // columns * (height + gap), position % columns * (width + gap)
        canvas[top : top + height, left : left + width] = tile
    return canvas


def labelled_grid(rows: Sequence[tuple[str, Tensor]], columns: int = 18) -> Image.Image:
    """Stack rows of images, each with its label on the left.

    Args:
        rows: label (one or two lines) and images (N, C, H, W) uint8, of which the first ``columns`` are shown.
    """
    require(bool(rows), "a grid needs at least one row of images")
    font = ImageFont.load_default(size=15)
    strips = [image_grid(images[:columns], columns) for _, images in rows]
    margin, gap = 16, 10
    ruler = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    label_width = max(math.ceil(ruler.multiline_textbbox((0, 0), text, font=font)[2]) for text, _ in rows)
    left = margin + label_width + margin
    width = left + max(strip.shape[1] for strip in strips) + margin
    height = 2 * margin + sum(strip.shape[0] for strip in strips) + gap * (len(strips) - 1)
    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    top = margin
    for (text, _), strip in zip(rows, strips):
        canvas.paste(Image.fromarray(strip), (left, top))
        middle = (left - margin, top + strip.shape[0] // 2)
        draw.multiline_text(middle, text, fill=_INK, font=font, anchor="rm", align="right")
        top += strip.shape[0] + gap
    return canvas


def save_png(image: Image.Image, path: Path) -> None:
    """Write an image as a PNG file, complete or not at all."""
    with replacing(path) as draft:
        image.save(draft, "PNG")


def save_images(batches: Iterable[Tensor], folder: Path, names: Iterable[str]) -> None:
    """Write each image of uint8 batches (B, C, H, W) to its own file; PNG is lossless.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    remaining = iter(names)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for batch in batches:
            for image in batch.cpu().numpy():
                Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(
                    folder / next(remaining)
                )
    except OSError as error:
        raise UserError(f"cannot write images to {folder}: {error.strerror or error}") from error
