"""Folders of images, with and without classes, and folders of tar files with images."""

import hashlib
import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rcg_lightning.arguments import BelowOne, PositiveInt
from rcg_lightning.artifacts import fingerprint
from rcg_lightning.data.decode import SUFFIXES, Unreadable, decode
from rcg_lightning.data.folder_index import FolderIndex, index_folder
from rcg_lightning.data.image_split import Channels, ImageSplit, Source, fixed_subset
from rcg_lightning.data.split_folders import split_folders
from rcg_lightning.data.tar_index import index_tars, tar_names
from rcg_lightning.errors import UserError
from rcg_lightning.types import require

log = logging.getLogger(__name__)
OnBad = Literal["skip", "stop"]


class BadImage(UserError):
    """A file that cannot be read. The message is one line, even if it was raised in a worker of the loader."""

    def __init__(self, message: str) -> None:
        # a DataLoader rebuilds a worker's exception from its whole traceback, whose last line ends with our message
        super().__init__(message.strip().splitlines()[-1].removeprefix(f"{__name__}.{type(self).__name__}: "))


class FolderSplit(ImageSplit):
    """Files of a folder: the ``rows`` (N,), ascending, of its ``index``.

    A file that cannot be read stops the run (``on_bad`` = "stop") or is replaced ("skip") by the next readable file of
    its class. It is always the same file, so that stores stay valid.
    """

    def __init__(
        self,
        index: FolderIndex,
        rows: np.ndarray,
        labels: np.ndarray | None,
        classes: int | None,
        channels: int,
        on_bad: OnBad,
        orient: bool,
    ) -> None:
        self.index = index
        self.rows = rows
        self.labels = labels
        self.classes = classes
        self.channels = channels
        self.on_bad = on_bad
        self.orient = orient
        # one byte for each image, 1 where it could not be read, in memory that the loader's workers share
        self._bad = torch.zeros(len(rows), dtype=torch.uint8).share_memory_()

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        return str(self.index.root / self.index.name(self.rows[index]))

    @property
    def skipped(self) -> int:
        return int(self._bad.sum())

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint([self.index.fingerprint(self.rows), self.channels, self.orient, self.labels is None])

    def load(self, index: int) -> Tensor:
        image = self._try(index)
        if image is not None:
            return image
        for other in self._replacements(index):
            image = self._try(other)
            if image is not None:
                return image
        same = f"{len(self)} images" if self.labels is None else f"images with the class of {self.name(index)}"
        raise BadImage(f"none of the {same} in {self.index.root} can be read: is this the right folder?")

    def _replacements(self, index: int) -> Iterator[int]:
        """Yield the positions that may replace ``index``, in their order: images of its class, as its label stays."""
        labels = self.labels
        return (other for other in self._after(index) if labels is None or labels[other] == labels[index])

    def _after(self, index: int) -> Iterator[int]:
        return ((index + step) % len(self) for step in range(1, len(self)))

    def _try(self, index: int) -> Tensor | None:
        if self._bad[index]:
            return None
        path = self.name(index)
        try:
            return decode(self.index.read(self.rows[index]), self.channels, self.orient)
        except (OSError, Unreadable) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            if self.on_bad == "stop":
                raise BadImage(
                    f"cannot read image {path}: {reason}; repair or remove it, or set on_bad to skip"
                ) from error
        self._bad[index] = 1
        log.warning("skipped %s, which cannot be read (%s): the next readable image replaces it", path, reason)
        return None


class FolderSource(Source):
    """Base of the folder sources; see ``ImageFolder`` for the arguments."""

    def __init__(
        self,
        root: Path,
        channels: Channels = 3,
        on_bad: OnBad = "skip",
        eval_share: BelowOne = 0.1,
        limit: PositiveInt | None = None,
        orient: bool = False,
    ) -> None:
        self.root = Path(root).expanduser()
        self.channels = channels
        self.on_bad: OnBad = on_bad
        self.eval_share = eval_share
        self.limit = limit
        self.orient = orient

    def train(self) -> ImageSplit:
        index, rows = self._split()[0]
        return self._images(index, rows[fixed_subset(len(rows), self.limit)])

    def evaluation(self) -> ImageSplit:
        return self._images(*self._split()[1])

    def _images(self, index: FolderIndex, rows: np.ndarray) -> FolderSplit:
        labels, classes = self._labels(index, rows)
        return FolderSplit(index, rows, labels, classes, self.channels, self.on_bad, self.orient)

    def _labels(self, index: FolderIndex, rows: np.ndarray) -> tuple[np.ndarray | None, int | None]:
        return None, None

    def _split(self) -> tuple[tuple[FolderIndex, np.ndarray], tuple[FolderIndex, np.ndarray]]:
        """Return (index, rows) of training and evaluation images."""
        if not self.root.is_dir():
            raise UserError(f"no folder of images at {self.root}: give the root of the data set")
        train, evaluation = self._split_folders()
        if evaluation is not None:
            first, second = self._index(train), self._index(evaluation)
            return (first, np.arange(len(first))), (second, np.arange(len(second)))
        index = self._index(train)
        for_evaluation = hashed_split(index, self.eval_share)
        require(
            not for_evaluation.all(),
            f"{index.root} holds too few images for two splits ({len(index)}): add images, or set eval_share to 0",
        )
        return (index, np.flatnonzero(~for_evaluation)), (index, np.flatnonzero(for_evaluation))

    def _split_folders(self) -> tuple[Path, Path | None]:
        """Return the folders of the training and evaluation images; the second is None where a hash splits one."""
        return split_folders(self.root, SUFFIXES)

    def _index(self, folder: Path) -> FolderIndex:
        index = index_folder(folder)
        require(len(index) > 0, f"no images in {folder}: put files such as .jpg or .png there, or give another root")
        return index


class ImageFolder(FolderSource):
    """Images in one folder per class: ``root/train/<class>/…`` with ``root/val/<class>/…`` (or ``test``), or
    ``root/<class>/…`` alone.

    A class may have any name, also ``test`` or ``train``: the folders in ``root`` are splits only where all of them
    that hold images have names of splits.

    Args:
        root: the folder above these.
        channels: 3 (RGB) or 1 (grey); every image is converted.
        on_bad: ``skip`` replaces a file that cannot be read and logs a warning, ``stop`` ends the run.
        eval_share: fraction of the images that are evaluation images where there is no ``val`` or ``test``. A hash of
            the names selects them, so the split stays when images are added.
        limit: number of training images to use, a fixed subset.
        orient: rotate images by the camera's EXIF tag; the official code does not.
    """

    def _labels(self, index: FolderIndex, rows: np.ndarray) -> tuple[np.ndarray, int]:
        labels = index.folders[rows]
        if len(labels) and labels.min() < 0:
            stray = index.name(rows[int(labels.argmin())])
            raise UserError(f"{index.root / stray} is in no class folder: use one folder per class, or FlatFolder")
        return np.ascontiguousarray(labels), len(index.classes)

    def _split(self) -> tuple[tuple[FolderIndex, np.ndarray], tuple[FolderIndex, np.ndarray]]:
        train, evaluation = super()._split()
        known, found = train[0].classes, evaluation[0].classes
        if known != found:  # labels must mean the same in both splits
            unknown = sorted(set(found) - set(known))
            require(not unknown, f"class folders {unknown[:3]} of {evaluation[0].root} are not in {train[0].root}")
            label = np.asarray([known.index(name) for name in found], np.int64)
            folders = np.where(evaluation[0].folders < 0, -1, label[evaluation[0].folders])
            evaluation = (replace(evaluation[0], folders=folders, classes=known), evaluation[1])
        return train, evaluation


class ImageNet(ImageFolder):
    """ImageNet in its usual layout: ``root/train/<wnid>/*.JPEG`` and ``root/val/<wnid>/*.JPEG``."""

    def _split_folders(self) -> tuple[Path, Path | None]:
        train, evaluation = self.root / "train", self.root / "val"
        for folder in (train, evaluation):
            require(folder.is_dir(), f"no {folder}: ImageNet's root holds train/<wnid>/*.JPEG and val/<wnid>/*.JPEG")
        return train, evaluation


class FlatFolder(FolderSource):
    """Images without labels: every image in ``root`` or any folder below it.

    ``root/train`` and ``root/val`` (or ``test``) are the two splits where both exist. The arguments are those of
    ``ImageFolder``.
    """


class TarShards(FolderSource):
    """Images in tar files of webdataset's layout: ``key.jpg``, and ``key.cls`` for the number of the class.

    ``root/train/*.tar`` with ``root/val/*.tar`` (or ``test``), or ``root/*.tar``. Images are read by their position
    in an uncompressed tar, in any order, so nothing needs unpacking or shuffling. The arguments are those of
    ``ImageFolder``.
    """

    def _split_folders(self) -> tuple[Path, Path | None]:
        train, evaluation = split_folders(self.root, ())  # other folders are not read, so they cannot disagree
        loose = tar_names(self.root) if train != self.root else []
        require(not loose, f"{self.root} holds {loose[:1]} next to {train.name}/: put every tar into a split, or none")
        return train, evaluation

    def _index(self, folder: Path) -> FolderIndex:
        index = index_tars(folder)
        require(len(index) > 0, f"no images in the .tar files of {folder}: they should hold key.jpg, key.cls")
        return index

    def _split(self) -> tuple[tuple[FolderIndex, np.ndarray], tuple[FolderIndex, np.ndarray]]:
        train, evaluation = super()._split()
        if train[0].classes and evaluation[0].classes:  # an evaluation image of the last class may be missing
            evaluation = (replace(evaluation[0], classes=train[0].classes), evaluation[1])
        return train, evaluation

    def _labels(self, index: FolderIndex, rows: np.ndarray) -> tuple[np.ndarray | None, int | None]:
        if not index.classes:
            return None, None
        labels = index.folders[rows]
        if len(labels) and labels.min() < 0:
            unlabelled = index.root / index.name(rows[int(labels.argmin())])
            raise UserError(f"{unlabelled} has no class: add its .cls file, or remove all of them")
        return np.ascontiguousarray(labels), len(index.classes)


def hashed_split(index: FolderIndex, share: float) -> np.ndarray:
    """Select evaluation images, (N,) bool, by a hash of their names; at least one unless ``share`` is 0."""
    if share == 0:
        return np.zeros(len(index), bool)
    names = (os.fsencode(index.name(row)) for row in range(len(index)))
    values = np.asarray([int.from_bytes(hashlib.blake2b(name, digest_size=8).digest()) for name in names], np.uint64)
    selected = values < np.uint64(int(share * 2**64))
    if not selected.any():
        selected[values.argmin()] = True
    return selected
