"""ImageNet-LT, and what it needs: lists of images and their labels, looked up in a folder."""

import itertools
import os
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from rcg_lightning.arguments import PositiveInt
from rcg_lightning.artifacts import fingerprint
from rcg_lightning.data.folder_index import FolderIndex, index_folder
from rcg_lightning.data.image_folders import FolderSplit, OnBad
from rcg_lightning.data.image_split import Channels, ImageSplit, Source, fixed_subset
from rcg_lightning.limits import CLASSES
from rcg_lightning.types import require

Stratum = Literal["many", "medium", "few"]
# the least and the largest number of training images of a class in a stratum
STRATA: dict[Stratum, tuple[int, float]] = {"many": (101, float("inf")), "medium": (20, 100), "few": (0, 19)}


class ListedSplit(FolderSplit):
    """Files of a folder with labels from a list, which are part of the fingerprint."""

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(super().fingerprint, [] if self.labels is None else [self.labels.tobytes()])


def read_list(path: Path) -> tuple[list[str], np.ndarray]:
    """Read the names and labels (N,) of a list with a line ``path label`` for each image.

    Raises:
        UserError: the file is missing or empty, or has another line.
    """
    require(path.is_file(), f"no list of images at {path}: it needs a line with path and class number for each image")
    names, labels = [], []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        name, _, label = line.strip().rpartition(" ")
        fits = bool(name) and label.isdecimal() and label.isascii()
        require(fits or not line.strip(), f"{path}, line {number} is not a path and a class number: {line[:80]!r}")
        if line.strip():
            names.append(name.strip())
            labels.append(int(label))
            CLASSES.check(labels[-1] + 1, f"{path}, line {number}")
    require(bool(names), f"the list {path} is empty: give one with a line for each image")
    return names, np.asarray(labels, np.int64)


def find_images(index: FolderIndex, names: list[str], where: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows (M,) of ``index`` with the images ``names``, ascending, and their positions (M,) in ``names``.

    Args:
        index: the index of a folder.
        names: paths relative to the folder; a repeated one is used once.
        where: the source of the names, for messages.

    Raises:
        UserError: an image is missing.
    """
    position = {os.fsencode(name): i for i, name in enumerate(names)}
    text = index.text.tobytes()
    found = [
        (row, text[a:b]) for row, (a, b) in enumerate(itertools.pairwise(index.ends.tolist())) if text[a:b] in position
    ]
    missing = position.keys() - {name for _, name in found}
    first = os.fsdecode(min(missing, default=b""))
    few = f"{len(missing)} of {len(position)} images of {where} are not in {index.root}, such as {first}"
    require(not missing, f"{few}: complete the folder, or correct its root")
    rows = np.asarray([row for row, _ in found], np.int64)
    return rows, np.asarray([position[name] for _, name in found], np.int64)


class ImageNetLT(Source):
    """ImageNet-LT (Liu et al. 2019): 115,846 images of ImageNet's 1,000 classes, 5 to 1,280 images per class.

    ``ImageNet_LT_train.txt``, ``_val.txt`` and ``_test.txt`` are the official lists, with lines such as
    ``train/n01440764/n01440764_190.JPEG 0``. The test images are ImageNet's validation set, 50 per class; the
    validation images are 20 per class from its training set.

    Args:
        root: ImageNet's root, which holds ``train`` and ``val``.
        lists: folder of the lists; by default ``root``.
        stratum: use classes with ``many`` (above 100), ``medium`` (20 to 100) or ``few`` (below 20) training images
            only, in both splits; labels and number of classes do not change. For evaluation by strata.
        eval_list: the list of the evaluation images, ``test`` or ``val``.
        channels: 3 (RGB) or 1 (grey); every image is converted.
        on_bad: ``skip`` replaces a file that cannot be read and logs a warning, ``stop`` ends the run.
        limit: number of training images to use, a fixed subset.
        orient: rotate images by the camera's EXIF tag.
    """

    def __init__(
        self,
        root: Path,
        lists: Path | None = None,
        stratum: Stratum | None = None,
        eval_list: Literal["test", "val"] = "test",
        channels: Channels = 3,
        on_bad: OnBad = "skip",
        limit: PositiveInt | None = None,
        orient: bool = False,
    ) -> None:
        self.root = Path(root).expanduser()
        self.lists = self.root if lists is None else Path(lists).expanduser()
        self.stratum: Stratum | None = stratum
        self.eval_list = eval_list
        self.on_bad: OnBad = on_bad
        self.channels, self.limit, self.orient = channels, limit, orient

    def train(self) -> ImageSplit:
        return self._images("train", self.limit)

    def evaluation(self) -> ImageSplit:
        return self._images(self.eval_list, None)

    def _images(self, split: str, limit: int | None) -> ImageSplit:
        path = self._list(split)
        names, labels = read_list(path)
        counts = np.bincount(read_list(self._list("train"))[1])  # (classes,)
        unknown = f"{path} has class {labels.max()}, but the training list has {len(counts)} classes, from 0"
        require(labels.max() < len(counts), f"{unknown}: give lists that belong together")
        names, folder = self._below_one_folder(names, path)
        rows, positions = find_images(index := index_folder(folder), names, str(path))
        labels = labels[positions]
        if self.stratum is not None:
            least, most = STRATA[self.stratum]
            inside = np.isin(labels, np.flatnonzero((counts >= least) & (counts <= most)))
            none = f"no class of {self._list('train')} has {self.stratum} images: leave stratum out"
            require(bool(inside.any()), none)
            rows, labels = rows[inside], labels[inside]
        rows, labels = (values[fixed_subset(len(rows), limit)] for values in (rows, labels))
        return ListedSplit(index, rows, labels, len(counts), self.channels, self.on_bad, self.orient)

    def _list(self, split: str) -> Path:
        return self.lists / f"ImageNet_LT_{split}.txt"

    def _below_one_folder(self, names: list[str], path: Path) -> tuple[list[str], Path]:
        """Return the names relative to the one folder in ``root`` that they all begin with, and that folder."""
        folders = {name.partition("/")[0] for name in names}
        require(len(folders) == 1, f"{path} names images of several folders ({', '.join(sorted(folders)[:3])})")
        return [name.partition("/")[2] for name in names], self.root / folders.pop()
