"""The interface of a data set: a source gives splits, and a split gives images by their index."""

from abc import abstractmethod
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rcg_lightning.artifacts import fingerprint
from rcg_lightning.config import ConfigMixin
from rcg_lightning.data import numpy_rng
from rcg_lightning.errors import UserError
from rcg_lightning.limits import CLASSES
from rcg_lightning.types import require


class ImageSplit:
    """One split of a data set.

    Attributes:
        channels: 1 (grey) or 3 (RGB), the same for all images.
        labels: (N,) int64 in [0, classes), or None.
        classes: number of classes, or None.
        array: (N, C, H, W) uint8 where all images are in memory, else None.
        shape: (C, H, W) where all images are known to have the same, else None.
    """

    channels: int
    labels: np.ndarray | None = None
    classes: int | None = None
    array: np.ndarray | None = None
    shape: tuple[int, int, int] | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def load(self, index: int) -> Tensor:
        """Return image ``index`` as uint8 (C, H, W)."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Return the name of image ``index`` for messages, such as its path."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A hash that identifies the images, the same on every machine."""

    @property
    def skipped(self) -> int:
        """The number of images that could not be read so far and were replaced."""
        return 0


class ArraySplit(ImageSplit):
    """Images in memory: ``array`` (N, C, H, W) uint8, ``labels`` (N,) or None."""

    array: np.ndarray

    def __init__(self, array: np.ndarray, labels: np.ndarray | None, classes: int | None, title: str) -> None:
        self.array = np.ascontiguousarray(array)
        self.labels = None if labels is None else np.asarray(labels, np.int64)
        self.classes = classes
        self.title = title
        self.channels = array.shape[1]
        self.shape = tuple(array.shape[1:])

    def __len__(self) -> int:
        return len(self.array)

    def load(self, index: int) -> Tensor:
        return torch.from_numpy(self.array[index].copy())

    def name(self, index: int) -> str:
        return f"{self.title}[{index}]"

    @cached_property
    def fingerprint(self) -> str:
        arrays = [self.array] if self.labels is None else [self.array, self.labels]
        return fingerprint(list(self.array.shape), (array.data for array in arrays))


Channels = Literal[1, 3]  # grey or RGB


class Source(ConfigMixin):
    """Base of data sets: the splits "train" (``train()``), "eval" (``evaluation()``) and "validation".

    Choices that must not see the evaluation images, such as early stopping or the width of a kernel, are made on
    ``validation()``: training images that are not trained on.
    """

    def prepare(self) -> None:
        """Download missing files; runs in one process of a machine only."""

    @abstractmethod
    def train(self) -> ImageSplit: ...

    @abstractmethod
    def evaluation(self) -> ImageSplit: ...

    def validation(self) -> ImageSplit | None:
        """Return the validation images; None where the source holds none back."""
        return None


def check_labels(images: ImageSplit, train: ImageSplit) -> None:
    """Raise a UserError where labels do not fit the classes of the training images, from which networks are built.

    A network's table has a row for each class and one for no condition, so a larger label would read another row.

    Args:
        images: a split; without labels it fits.
        train: the training images of the same source.
    """
    labels = images.labels
    if labels is None:
        return
    count = train.classes
    require(count is not None, f"{images.name(0)} has a class, but the training images have none: give all a class")
    assert count is not None
    CLASSES.check(count, f"the labels of {train.name(0)} and others")
    fits = labels.shape == (len(images),) and labels.dtype.kind in "iu"
    require(fits, f"labels are {labels.dtype} {labels.shape}, not one whole number for each of {len(images)} images")
    wrong = (labels < 0) | (labels >= count)
    if wrong.any():
        first = int(wrong.argmax())
        raise UserError(
            f"{images.name(first)} has class {labels[first]}, but the training images have {count} classes, from 0: "
            "correct the label, or add training images of this class"
        )


def fixed_subset(size: int, limit: int | None) -> np.ndarray:
    """Return the positions, ascending, of ``limit`` of ``size`` images: the first of a fixed random permutation."""
    if limit is None or limit >= size:
        return np.arange(size)
    return np.sort(numpy_rng.permutation(size, 0)[:limit])
