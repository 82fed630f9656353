"""Images that a list file names, among those of a folder; ImageNet-LT is told by such lists."""

import hashlib
import itertools
import os
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from rcg_lightning.data.folder_index import FolderIndex, index_folder
from rcg_lightning.data.image_folders import FolderSplit, OnBad, check_on_bad
from rcg_lightning.data.image_split import ImageSplit, Source, check_channels, chosen
from rcg_lightning.types import require

Stratum = Literal["many", "medium", "few"]
# of training images of a class in a stratum, both included
STRATA: dict[Stratum, tuple[int, float]] = {"many": (101, float("inf")), "medium": (20, 100), "few": (0, 19)}


class ListedSplit(FolderSplit):
    """Files of a folder whose labels a list gives: they are part of what the images are."""

    @cached_property
    def fingerprint(self) -> str:
        labels = b"" if self.labels is None else self.labels.tobytes()
        return hashlib.sha256(super().fingerprint.encode() + labels).hexdigest()[:32]


def read_list(path: Path) -> tuple[list[str], np.ndarray]:
    """Return names and labels (N,) of a list with a line ``path label`` for each image.

    Raises:
        UserError: there is no such file, it is empty, or a line is something else.
    """
    require(path.is_file(), f"no list of images at {path}: each of its lines is an image's path and its class's number")
    names, labels = [], []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        name, _, label = line.strip().rpartition(" ")
        fits = bool(name) and label.isdecimal()
        require(fits or not line.strip(), f"{path}, line {number} is no path and class's number: {line[:80]!r}")
        if line.strip():
            names.append(name.strip())
            labels.append(int(label))
    require(bool(names), f"the list {path} is empty: give one with a line for each image")
    return names, np.asarray(labels, np.int64)


def find(index: FolderIndex, names: list[str], where: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows (M,) of ``index``, ascending, of the images called ``names``, and each one's place in these.

    Args:
        index: of a folder.
        names: relative to it; one that comes twice is taken once.
        where: what names them, for messages.

    Raises:
        UserError: an image is missing.
    """
    place = {os.fsencode(name): i for i, name in enumerate(names)}
    text = index.text.tobytes()
    found = [
        (row, text[a:b]) for row, (a, b) in enumerate(itertools.pairwise(index.ends.tolist())) if text[a:b] in place
    ]
    missing = place.keys() - {name for _, name in found}
    first = os.fsdecode(min(missing, default=b""))
    few = f"{len(missing)} of {len(place)} images of {where} are not in {index.root}, such as {first}"
    require(not missing, f"{few}: complete the folder, or correct its root")
    rows = np.asarray([row for row, _ in found], np.int64)
    return rows, np.asarray([place[name] for _, name in found], np.int64)


class ImageNetLT(Source):
    """ImageNet-LT (Liu et al. 2019): 115,846 images of ImageNet's 1,000 classes, 1,280 to 5 of a class.

    ``ImageNet_LT_train.txt``, ``_val.txt`` and ``_test.txt`` are the official lists, with lines such as
    ``train/n01440764/n01440764_190.JPEG 0``. The test images are ImageNet's validation set, 50 of a class; the
    validation images are 20 of a class from its training set.

    Args:
        root: ImageNet's root, which holds ``train`` and ``val``.
        lists: folder of the lists; ``root`` unless given.
        stratum: only images of classes with ``many`` (above 100), ``medium`` (20 to 100) or ``few`` (below 20)
            training images, in both splits; labels and number of classes stay. For evaluation by strata.
        eval: which list is held out, ``test`` or ``val``.
        channels: 3 (RGB) or 1 (grey); every image is converted.
        on_bad: what to do with a file that cannot be read: ``skip`` replaces it and says so, ``stop`` ends the run.
        limit: train on that many images only, always the same.
        orient: turn images as the camera's EXIF tag says.
    """

    def __init__(
        self,
        root: Path,
        lists: Path | None = None,
        stratum: Stratum | None = None,
        evaluation: Literal["test", "val"] = "test",
        channels: int = 3,
        on_bad: OnBad = "skip",
        limit: int | None = None,
        orient: bool = False,
    ) -> None:
        self.root = Path(root).expanduser()
        self.lists = self.root if lists is None else Path(lists).expanduser()
        known = ", ".join(get_args(Stratum))
        require(stratum is None or stratum in STRATA, f"the strata of ImageNet-LT are {known}, not {stratum!r}")
        require(evaluation in ("test", "val"), f"evaluation lists of ImageNet-LT are test and val, not {evaluation!r}")
        self.stratum: Stratum | None = stratum
        self.list_evaluation = evaluation
        self.on_bad: OnBad = check_on_bad(on_bad)
        self.channels, self.limit, self.orient = check_channels(channels), limit, orient

    def train(self) -> ImageSplit:
        return self._images("train", self.limit)

    def evaluation(self) -> ImageSplit:
        return self._images(self.list_evaluation, None)

    def _images(self, split: str, limit: int | None) -> ImageSplit:
        path = self._list(split)
        names, labels = read_list(path)
        counts = np.bincount(read_list(self._list("train"))[1])  # (classes,)
        unknown = f"{path} has class {labels.max()}, and the training list has {len(counts)} classes, from 0"
        require(labels.max() < len(counts), f"{unknown}: give lists that belong together")
        names, folder = self._below_one_folder(names, path)
        rows, places = find(index := index_folder(folder), names, str(path))
        labels = labels[places]
        if self.stratum is not None:
            least, most = STRATA[self.stratum]
            kept = np.isin(labels, np.flatnonzero((counts >= least) & (counts <= most)))
            require(bool(kept.any()), f"no class of {self._list('train')} has {self.stratum} images: leave stratum out")
            rows, labels = rows[kept], labels[kept]
        rows, labels = (values[chosen(len(rows), limit)] for values in (rows, labels))
        return ListedSplit(index, rows, labels, len(counts), self.channels, self.on_bad, self.orient)

    def _list(self, split: str) -> Path:
        return self.lists / f"ImageNet_LT_{split}.txt"

    def _below_one_folder(self, names: list[str], path: Path) -> tuple[list[str], Path]:
        """Return names relative to the folder directly in ``root`` that all of them begin with, and that folder."""
        folders = {name.partition("/")[0] for name in names}
        require(len(folders) == 1, f"{path} names images of several folders ({', '.join(sorted(folders)[:3])})")
        return [name.partition("/")[2] for name in names], self.root / folders.pop()
