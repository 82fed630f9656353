"""Decode an image file of any format into an 8-bit image."""

import io
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import get_worker_info
from torchvision.io import ImageReadMode, decode_jpeg, decode_png

from rcg_lightning.errors import UserError
from rcg_lightning.limits import PIXELS

with suppress(ImportError):  # an optional plugin, for .heic
    from pillow_heif import register_heif_opener  # type: ignore[import-not-found]

    register_heif_opener()

# EPS runs Ghostscript, WMF is drawn by Windows, and Pillow only identifies the others
_NO_RASTER = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}
Image.init()
_FORMATS = [name for name in Image.ID if name not in _NO_RASTER]
# the format of each suffix of a file that can be read, such as ".jpg": "JPEG"
FORMAT_OF = {s: name for s, name in Image.registered_extensions().items() if name in _FORMATS} | {".mpo": "JPEG"}
SUFFIXES = tuple(sorted(FORMAT_OF))
MODES = {1: "L", 3: "RGB"}
_JPEG = b"\xff\xd8\xff"
_PNG, _PNG_TYPE = b"\x89PNG\r\n\x1a\n", slice(24, 26)  # bits of a channel, and the kind of pixels
_RGB_OF_8_BITS = b"\x08\x02"
_THREADS = min(16, os.cpu_count() or 1)

Item = TypeVar("Item")
Result = TypeVar("Result")

_MAX_BYTES_PER_PIXEL = 16  # of a file: four channels of 32 bits, not compressed


class _PixelLimit:
    """Context in which Pillow has our limit of pixels, for any number of threads at a time."""

    def __init__(self) -> None:
        self._lock, self._inside, self._restore = Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        limit = PIXELS.value
        with self._lock:
            self._inside += 1
            if self._inside > 1:
                return
            # Pillow warns above its limit, without the file's name, and rejects above twice its limit
            self._restore.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            self._restore.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
            Image.MAX_IMAGE_PIXELS = limit // 2

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._restore.close()


_pixel_limit = _PixelLimit()
os.register_at_fork(after_in_child=_pixel_limit.__init__)  # a thread of the parent may have held the lock


class Unreadable(Exception):
    """A file that cannot be decoded; the message gives the reason."""


def decode(content: bytes, channels: int, orient: bool = False) -> Tensor:
    """Decode an image file into uint8 (C, H, W), with 1 or 3 channels.

    Grey, palette, CMYK and 16-bit images are converted; transparency is dropped, and of an animation the first frame
    is taken, as torchvision's ImageFolder does. ``orient`` applies the camera's EXIF orientation, which the official
    code ignores. JPEG and RGB PNG files are decoded by a faster library to the same pixels.

    Raises:
        Unreadable: broken or truncated, not an image, too large, or of a type without a fixed range of values.
    """
    with opened_image(io.BytesIO(content)) as image:  # reads the header only, and rejects what claims too many pixels
        if channels == 3 and (decoder := _faster_decoder(content)) is not None:
            values = torch.frombuffer(bytearray(content), dtype=torch.uint8)  # writable, or torch warns
            try:
                return decoder(values, ImageReadMode.RGB, apply_exif_orientation=orient)  # type: ignore[return-value]
            except RuntimeError:  # Pillow reads a few files that libjpeg does not, and its messages are better
                pass
        image.load()
        turned = ImageOps.exif_transpose(image) if orient else image
        return to_tensor(_to_eight_bits(turned).convert(MODES[channels]))


def in_threads(load: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Return ``load`` of each item, in order, computed by threads: both decoders release the interpreter's lock.

    A loader's worker computes them one after the other, since the other cores have workers of their own.
    """
    threads = 1 if get_worker_info() is not None else min(_THREADS, len(items))
    if threads < 2:
        return [load(item) for item in items]
    with _pixel_limit, ThreadPoolExecutor(threads) as pool:
        return list(pool.map(load, items))


def _faster_decoder(content: bytes) -> Callable[..., Any] | None:
    """Return torchvision's decoder of a file that it decodes to the same RGB pixels as Pillow, else None."""
    if content.startswith(_JPEG):
        return decode_jpeg
    return decode_png if content.startswith(_PNG) and content[_PNG_TYPE] == _RGB_OF_8_BITS else None


def image_bytes(path: Path) -> bytes:
    """Return the content of an image file; raises ``Unreadable`` where it is too large to be one, or OSError."""
    check_bytes(path.stat().st_size)
    return path.read_bytes()


def check_bytes(size: int) -> None:
    """Raise ``Unreadable`` where an image file of ``size`` bytes is larger than an image of the most pixels."""
    limit = _MAX_BYTES_PER_PIXEL * PIXELS.value
    if size > limit:
        raise Unreadable(f"its {size:,} bytes are more than the largest image has: {PIXELS.variable} sets its pixels")


def is_grey(file: Path) -> bool:
    """Whether an image file holds grey values only, by its header; raises ``Unreadable`` like ``decode``."""
    with opened_image(file) as image:
        return Image.getmodebase(image.mode) == "L"


@contextmanager
def opened_image(file: Path | io.BytesIO) -> Iterator[Image.Image]:
    """Open an image by Pillow, with our limit of pixels; errors, also of the block, become ``Unreadable``."""
    try:
        with _pixel_limit, Image.open(file, formats=_FORMATS) as image:
            yield image
    except (Unreadable, UserError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        found = re.search(r"(\d+) pixels", str(error))
        raise Unreadable(PIXELS.excess(int(found[1]) if found else None)) from error
    except UnidentifiedImageError as error:
        raise Unreadable("not in any image format") from error
    except Exception as error:  # broken files make PIL's plugins raise OSError, SyntaxError, struct.error, ValueError …
        raise Unreadable(str(error) or "not in any image format") from error


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
