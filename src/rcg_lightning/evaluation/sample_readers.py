"""Samples to be scored, read from a folder of images, an .npz file or a store."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rcg_lightning.array_files import npz_names, read_npz
from rcg_lightning.data.decode import FORMAT_OF, Unreadable, decode, image_bytes, in_threads, is_grey
from rcg_lightning.data.folder_index import scan_folder
from rcg_lightning.data.store import MANIFEST, Store
from rcg_lightning.data.transforms import AsIs, CenterCrop, Transform
from rcg_lightning.errors import UserError
from rcg_lightning.types import require

log = logging.getLogger(__name__)
_BATCH = 256
_LOOKED_AT = 256  # files of a folder, evenly spaced, whose headers decide its number of channels
AS_IS = AsIs().describe(False)


@dataclass(frozen=True)
class Samples:
    """Images or representations, read batch by batch.

    Attributes:
        count: N.
        shape: (C, H, W) of each; (R,) of representations.
        read: positions start, stop -> uint8 (stop - start, C, H, W), or float (stop - start, R).
        resize: description of the transform that the images went through.
        format: ``npz``, ``store``, or the formats of the files in a folder: ``png``, ``jpeg``, ``jpeg and png``.
    """

    count: int
    shape: tuple[int, ...]
    read: Callable[[int, int], np.ndarray]
    format: str
    resize: str = AS_IS

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Tensor]:
        """Yield uint8 batches (B, C, H, W), or float batches (B, R); the next is read while one is used."""

        def read(start: int) -> np.ndarray:
            return self.read(start, min(start + _BATCH, self.count))

        with ThreadPoolExecutor(1) as reader:
            coming = reader.submit(read, 0)
            for start in range(0, self.count, _BATCH):
                batch = coming.result()
                if start + _BATCH < self.count:
                    coming = reader.submit(read, start + _BATCH)
                yield torch.from_numpy(batch)

    def part(self, start: int, stop: int) -> "Samples":
        """Return the images at positions start, …, stop - 1."""
        return replace(self, count=stop - start, read=lambda a, b: self.read(start + a, start + b))

    def first(self, count: int) -> Tensor:
        """Return the first ``count`` images, or all where there are fewer, uint8 (n, C, H, W)."""
        return torch.from_numpy(self.read(0, min(count, self.count)))


def samples_folder(path: Path) -> Path:
    """Return the path of the samples in a folder that `rcg sample` wrote; return any other path unchanged."""
    return path / "store" if (path / "store").is_dir() else path


def open_samples(path: Path, channels: int | None = None, resize: int | None = None) -> Samples:
    """Open images to be scored, in order of name or position.

    Args:
        path: a folder of PNG or JPEG files (searched below too), an .npz with ``arr_0`` or ``images``, uint8
            (N, H, W, C), or a store with a column ``image``, uint8 (H, W, C).
        channels: 1 or 3: number of channels of a folder's images; by default 1 if the first one is grey.
        resize: resize the shorter side of every image to this, bicubic with antialias, and cut out the central square.

    Raises:
        UserError: the path is missing, has no images, or has damaged images, or images of several sizes without
            ``resize``.
    """
    require(resize is None or resize > 0, f"--resize is a number of pixels, not {resize}")
    transform = AsIs() if resize is None else CenterCrop(resize)
    path = Path(path).expanduser()
    require(path.exists(), f"no samples at {path}: correct the path, or make them with rcg sample")
    if path.is_file():
        require(path.suffix == ".npz", f"{path} is neither a folder nor an .npz file: give one of these")
        return _transformed(_from_npz(path), transform)
    if (path / MANIFEST).is_file():
        return _transformed(_from_store(path), transform)
    return _from_folder(path, channels, transform)


def holds_representations(path: Path) -> bool:
    """Whether ``path`` is a store of representations without images."""
    if not (path / MANIFEST).is_file():
        return False
    columns = Store.open(path).columns
    return "representation" in columns and "image" not in columns


def open_representations(path: Path) -> Samples:
    """Open a store of generated representations, read batch by batch like images."""
    store = Store.open(path)
    shape = tuple(store.columns["representation"]["shape"])
    require(store.views == 1, f"the store at {path} has {store.views} views of each image: samples have one")

    def read(start: int, stop: int) -> np.ndarray:
        return store.read("representation", np.arange(start, stop)).astype(np.float32)

    return Samples(store.size, shape, read, "store")


def _transformed(samples: Samples, transform: Transform) -> Samples:
    if transform.size is None:
        return samples

    def read(start: int, stop: int) -> np.ndarray:
        return np.stack([transform(torch.from_numpy(image)).numpy() for image in samples.read(start, stop)])

    shape = transform.shape(samples.shape[0], None)
    return replace(samples, shape=shape, read=read, resize=transform.describe(False))


def _from_folder(folder: Path, channels: int | None, transform: Transform) -> Samples:
    index = scan_folder(folder)
    files = [folder / index.name(row) for row in range(len(index))]
    require(bool(files), f"{folder} holds no images: give the folder that holds the PNG or JPEG files")
    kinds = Counter(FORMAT_OF[file.suffix.lower()] for file in files)
    if len(kinds) > 1:
        found = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        log.warning("%s mixes formats (%s): JPEG's losses alone change a Fréchet distance", folder, found)
    guessed = channels is None
    if channels is None:
        looked_at = files[:: -(-len(files) // _LOOKED_AT)]
        channels = 1 if all(in_threads(_is_grey, looked_at)) else 3
    only_grey = guessed and channels == 1
    shape = _image(files[0], channels, None, transform).shape

    def read(start: int, stop: int) -> np.ndarray:
        return np.stack(
            in_threads(
                partial(_image, channels=channels, shape=shape, transform=transform, only_grey=only_grey),
                files[start:stop],
            )
        )

    format = " and ".join(sorted(kinds)).lower()
    return Samples(len(files), (shape[0], shape[1], shape[2]), read, format, transform.describe(False))


def _is_grey(file: Path) -> bool:
    try:
        return is_grey(file)
    except Unreadable as error:
        raise UserError(f"{file} is broken ({error}): remove it or make it again") from error


def _image(
    file: Path, channels: int, shape: tuple[int, ...] | None, transform: Transform, only_grey: bool = False
) -> np.ndarray:
    """Read one image (C, H, W) uint8; raise a UserError if it is damaged, in colour or not of the given shape."""
    try:
        pixels = transform(decode(image_bytes(file), channels)).numpy()
    except (Unreadable, OSError) as error:
        raise UserError(f"{file} is broken ({error}): remove it or make it again") from error
    if only_grey and not _is_grey(file):
        raise UserError(f"{file} is in colour, most images next to it are grey: convert them to one or the other")
    if shape is not None and pixels.shape != shape:
        sizes = [f"{s[2]}x{s[1]}" for s in (pixels.shape, shape)]
        raise UserError(
            f"{file} is {sizes[0]}, the first image {sizes[1]}: samples must have one size; rcg evaluate gives "
            f"them one with --resize, such as --resize {min(shape[1:])}"
        )
    return pixels


def _from_npz(path: Path) -> Samples:
    arrays = npz_names(path, "images")
    name = next((name for name in ("arr_0", "images") if name in arrays), None)
    if name is None:
        raise UserError(f"{path} holds {sorted(arrays)}, not arr_0 or images")
    return _from_array(read_npz(path, [name], "images")[name], str(path))


def _from_store(path: Path) -> Samples:
    store = Store.open(path)
    require("image" in store.columns, f"the store at {path} has columns {sorted(store.columns)}, but no image")
    require(store.views == 1, f"the store at {path} has {store.views} views of each image: samples have one")
    shape = tuple(store.columns["image"]["shape"])
    require(len(shape) == 3 and shape[2] in (1, 3), f"images in {path} are {shape}, not (H, W, 1 or 3)")

    def read(start: int, stop: int) -> np.ndarray:
        return _channels_first(store.read("image", np.arange(start, stop)))

    return Samples(store.size, (shape[2], shape[0], shape[1]), read, "store")


def _from_array(images: np.ndarray, where: str) -> Samples:
    require(
        images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] in (1, 3) and len(images) > 0,
        f"the images in {where} are {images.dtype} {images.shape}, not uint8 (N, H, W, 1 or 3)",
    )
    _, height, width, channels = images.shape

    def read(start: int, stop: int) -> np.ndarray:
        return _channels_first(images[start:stop])

    return Samples(len(images), (channels, height, width), read, "npz")


def _channels_first(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
