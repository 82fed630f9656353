"""Decode an image file of any format into an 8-bit image."""

import io
import warnings

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
MODES = {1: "L", 3: "RGB"}
_JPEG = b"\xff\xd8\xff"


class Unreadable(Exception):
    """A file that cannot be decoded; the message gives the reason."""


def decode(content: bytes, channels: int, orient: bool = False) -> Tensor:
    """Decode an image file into uint8 (C, H, W), with 1 or 3 channels.

    Grey, palette, CMYK and 16-bit images are converted; transparency is dropped, and of an animation the first frame
    is taken, as torchvision's ImageFolder does. ``orient`` applies the camera's EXIF orientation, which the official
    code ignores. JPEG files are decoded by a faster library to the same pixels.

    Raises:
        Unreadable: broken or truncated, not an image, or of a type without a fixed range of values.
    """
    if channels == 3 and content.startswith(_JPEG):
        try:
            return decode_jpeg(_as_tensor(content), ImageReadMode.RGB, apply_exif_orientation=orient)  # type: ignore
        except RuntimeError:  # Pillow reads a few files that libjpeg does not, and its messages are better
            pass
    return to_tensor(_by_pillow(content, channels, orient))


def _as_tensor(content: bytes) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tensor is read-only, and nothing writes to it
        return torch.frombuffer(content, dtype=torch.uint8)


def _by_pillow(content: bytes, channels: int, orient: bool) -> Image.Image:
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            if orient:
                image = ImageOps.exif_transpose(image)
            return _to_eight_bits(image).convert(MODES[channels])
    except Unreadable:
        raise
    except Image.DecompressionBombError as error:
        raise Unreadable(f"too large ({error})") from error
    except Exception as error:  # broken files make PIL's plugins raise OSError, SyntaxError, struct.error, ValueError …
        known = not isinstance(error, UnidentifiedImageError) and str(error)
        raise Unreadable(known or "not in any image format") from error


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits (PIL's own conversion clips it), and look up the colours of palettes."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise Unreadable("32-bit integers have no fixed range of values")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        raise Unreadable("floating-point images have no fixed range of values")
    if image.mode in ("P", "PA"):
        return image.convert("RGBA")
    return image


def to_tensor(image: Image.Image) -> Tensor:
    """Convert an image of mode L or RGB to uint8 (C, H, W)."""
    pixels = np.array(image)
    return torch.from_numpy(pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def to_pil(pixels: np.ndarray) -> Image.Image:
    """Convert an array uint8 (C, H, W) to an image: the inverse of ``to_tensor``."""
    return Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
