"""Data sets by name: those in memory; image_folders.py has the folders of images."""

import os
from abc import abstractmethod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np

from rcg_lightning.arguments import NonNegativeInt, PositiveInt, Range
from rcg_lightning.data.image_split import ArraySplit, Channels, ImageSplit, Source, fixed_subset
from rcg_lightning.errors import UserError
from rcg_lightning.pretrained.downloads import reason_of, require_answer, short_waits
from rcg_lightning.types import require

_UNREADABLE = (RuntimeError, OSError, ValueError, AssertionError, EOFError)  # torchvision's errors about its files


def _in_memory(
    array: np.ndarray, labels: np.ndarray, channels: int, limit: int | None, classes: list[int] | None, title: str
) -> ArraySplit:
    """Select images (N, C, H, W) uint8 with labels (N,); repeat grey, or convert colour to grey as PIL does."""
    if classes is not None:
        require(bool(classes), f"classes of {title} should be some of 0 to 9, or null for all")
        selected = np.isin(labels, classes)
        array, labels = array[selected], labels[selected]
    rows = fixed_subset(len(array), limit)
    array, labels = array[rows], labels[rows]
    if channels == 3 and array.shape[1] == 1:
        array = array.repeat(3, axis=1)
    if channels == 1 and array.shape[1] == 3:
        weights = np.asarray([19595, 38470, 7471], np.uint32)  # ITU-R 601-2 in 16 bits, PIL's "L"
        array = ((np.einsum("nchw,c->nhw", array.astype(np.uint32), weights) + 0x8000) >> 16).astype(np.uint8)[:, None]
    return ArraySplit(array, labels, 10, title)


class Digits(Source):
    """scikit-learn's handwritten digits: 1,797 grey images of 8x8; a fixed stratified split into 1,346 and 451.

    Args:
        channels: 1, or 3 to repeat grey.
        limit: number of training images to use, a fixed subset.
        classes: use these classes only, in both splits; labels do not change.
    """

    def __init__(
        self,
        channels: Channels = 1,
        limit: PositiveInt | None = None,
        classes: list[Annotated[int, Range(0, 9)]] | None = None,
    ) -> None:
        self.channels = channels
        self.limit, self.classes = limit, classes

    def train(self) -> ImageSplit:
        return _in_memory(*self._split(0), self.channels, self.limit, self.classes, "Digits train")

    def evaluation(self) -> ImageSplit:
        return _in_memory(*self._split(1), self.channels, None, self.classes, "Digits evaluation")

    def _split(self, part: int) -> tuple[np.ndarray, np.ndarray]:
        from sklearn.datasets import load_digits  # seconds to import, and only this source needs it
        from sklearn.model_selection import train_test_split

        values, labels = load_digits(return_X_y=True)
        array = np.round(values * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
        rows = train_test_split(np.arange(len(array)), test_size=451, random_state=0, stratify=labels)[part]
        return array[rows], labels[rows].astype(np.int64)


class TorchvisionSource(Source):
    """Base of the data sets that torchvision reads, in its layout below ``root``; downloaded where missing.

    Args:
        root: torchvision's root folder; the data set has a folder of its own below it.
        channels: 3 (RGB) or 1 (grey); every image is converted.
        limit: number of training images to use, a fixed subset.
        download: download missing files.
        classes: use these classes only, in both splits; labels do not change.
        validation_size: the last ``validation_size`` training images are for ``validation()`` only; in the literature
            10,000 of MNIST.
    """

    layout: str  # paths of the files below root
    natural_channels: int

    def __init__(
        self,
        root: Path,
        channels: Channels | None = None,
        limit: PositiveInt | None = None,
        download: bool = True,
        classes: list[Annotated[int, Range(0, 9)]] | None = None,
        validation_size: NonNegativeInt = 0,
    ) -> None:
        self.validation_size = validation_size
        self.root = Path(root).expanduser()
        self.channels = self.natural_channels if channels is None else channels
        self.limit, self.classes = limit, classes
        self.download = download

    @property
    def _kind(self) -> Any:
        """torchvision's class, which has the same name."""
        from torchvision import datasets

        return getattr(datasets, type(self).__name__)

    @abstractmethod
    def _arrays(self, data: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return (N, C, H, W) uint8 and (N,) labels of an instance of ``_kind``."""

    def prepare(self) -> None:
        self._load(True)
        self._load(False)

    def train(self) -> ImageSplit:
        array, labels = self._load(True)
        size = len(array) - self.validation_size
        require(size > 0, f"validation_size {self.validation_size} leaves none of {len(array)} images: set it lower")
        return self._images(array[:size], labels[:size], self.limit, "train")

    def validation(self) -> ImageSplit | None:
        if not self.validation_size:
            return None
        array, labels = self._load(True)
        return self._images(array[-self.validation_size :], labels[-self.validation_size :], None, "validation")

    def evaluation(self) -> ImageSplit:
        return self._images(*self._load(False), None, "evaluation")

    def _images(self, array: np.ndarray, labels: np.ndarray, limit: int | None, split: str) -> ImageSplit:
        return _in_memory(array, labels, self.channels, limit, self.classes, f"{type(self).__name__} {split}")

    def _load(self, train: bool) -> tuple[np.ndarray, np.ndarray]:
        try:
            return self._read(train)
        except _UNREADABLE as error:
            reason = error
        try:
            if self.download:
                self._fetch()
                return self._read(train)
        except _UNREADABLE as error:
            reason = error
        problem = "could not be downloaded" if self.download else "is missing or damaged, and download is off"
        raise UserError(
            f"{type(self).__name__} {problem}: put {self.layout} into {self.root} ({reason_of(reason)})"
        ) from reason

    def _read(self, train: bool) -> tuple[np.ndarray, np.ndarray]:
        return self._arrays(self._kind(self.root, train=train, download=False))

    def _fetch(self) -> None:
        """Download all files, and move them to ``root`` once torchvision has checked and unpacked them.

        torchvision itself writes to the final paths, where it takes a file that a killed download left for a whole one.
        """
        kind = self._kind
        require_answer(*(kind.mirrors if hasattr(kind, "mirrors") else [kind.url]))
        self.root.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".download-", dir=self.root) as draft, short_waits():
            for train in (True, False):
                kind(draft, train=train, download=True)
            for file in [path for path in Path(draft).rglob("*") if path.is_file()]:
                target = self.root / file.relative_to(draft)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, target)


class MNIST(TorchvisionSource):
    """Handwritten digits: 60,000 and 10,000 grey images of 28x28."""

    natural_channels = 1
    layout = "MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte"

    def _arrays(self, data: Any) -> tuple[np.ndarray, np.ndarray]:
        return data.data.numpy()[:, None], data.targets.numpy()


class FashionMNIST(MNIST):
    """Clothes, with the sizes and layout of MNIST."""

    layout = "FashionMNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte"


class CIFAR10(TorchvisionSource):
    """50,000 and 10,000 colour images of 32x32; torchvision checks the files' MD5 before it unpickles them."""

    natural_channels = 3
    layout = "cifar-10-batches-py/{data_batch_1..5,test_batch,batches.meta}"

    def _arrays(self, data: Any) -> tuple[np.ndarray, np.ndarray]:
        return data.data.transpose(0, 3, 1, 2), np.asarray(data.targets, np.int64)
