"""Images with tags: MIR-Flickr's layout, a table of tags, and the digits."""

import csv
import re
from abc import abstractmethod
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np

from rcg_lightning.arguments import BelowOne, PositiveInt
from rcg_lightning.data.datasets import Digits
from rcg_lightning.data.image_folders import FolderIndex, FolderSource, FolderSplit, OnBad
from rcg_lightning.data.image_split import Channels, ImageSplit, Source
from rcg_lightning.errors import UserError
from rcg_lightning.types import require

TagLists = list[tuple[str, ...]]  # the tags of each image, each tag once


class TaggedSource(Source):
    """Images with tags, and perhaps with annotations: words that were assigned to every image that they fit."""

    @abstractmethod
    def tags(self, images: ImageSplit) -> TagLists:
        """Return the tags of each image of a split, empty where it has none."""

    def annotations(self, images: ImageSplit) -> TagLists:
        """Return the annotations of each image of a split, or raise a UserError where the source has none."""
        raise UserError(f"{type(self).__name__} has no annotations: predict tags, or give a source that has some")


class MIRFlickr(TaggedSource, FolderSource):
    """MIR-Flickr: ``root/im12.jpg`` has its tags in ``tags12.txt``, one per line.

    Annotations are files such as ``clouds.txt`` that list the numbers of images, one per line. The files ``…_r1.txt``,
    which repeat the clearest cases, are not read.

    The splits are those of ``FlatFolder``, so both can use the same stores.

    Args:
        root: folder of the images.
        tag_folder: folder of the tag files; by default ``root/meta/tags``, ``root/tags`` or ``root``.
        annotation_folder: folder of the annotations; None for a data set without annotations.
        extra: use annotations as additional tags, as published (Mirza & Osindero 2014).
        examples: train on the first images, by their numbers, whose tags together are at most ``examples`` (published:
            150,000), and evaluate on the others; None splits by a hash of the names.
        channels, on_bad, eval_share, limit, orient: see ``ImageFolder``.
    """

    def __init__(
        self,
        root: Path,
        tag_folder: Path | None = None,
        annotation_folder: Path | None = None,
        extra: bool = True,
        examples: PositiveInt | None = None,
        channels: Channels = 3,
        on_bad: OnBad = "skip",
        eval_share: BelowOne = 0.1,
        limit: PositiveInt | None = None,
        orient: bool = False,
    ) -> None:
        super().__init__(root, channels, on_bad, eval_share, limit, orient)
        self.tag_folder, self.annotation_folder = tag_folder, annotation_folder
        self.extra, self.examples = extra, examples

    def tags(self, images: ImageSplit) -> TagLists:
        return self._tags_of(_names(images))

    def annotations(self, images: ImageSplit) -> TagLists:
        found = self._annotations
        require(
            bool(found), "this data set has no annotations: give their folder as annotation_folder, or predict tags"
        )
        return [found.get(number_of(name), ()) for name in _names(images)]

    def _tags_of(self, names: list[str]) -> TagLists:
        folder = self._tag_folder()
        files = {name: folder / f"tags{number_of(name)}.txt" for name in names}
        require(
            not files or any(file.is_file() for file in files.values()),
            f"no tags in {folder}, such as {next(iter(files.values()), Path()).name}: give their folder as tag_folder",
        )
        extra = self._annotations if self.extra else {}
        return [_unique_tags([*_lines(files[name]), *extra.get(number_of(name), ())]) for name in names]

    def _tag_folder(self) -> Path:
        usual = [self.root / "meta" / "tags", self.root / "tags"]
        folder = self.tag_folder or next((folder for folder in usual if folder.is_dir()), self.root)
        require(folder.is_dir(), f"no folder of tags at {folder}: give the folder with tags1.txt as tag_folder")
        return folder

    @cached_property
    def _annotations(self) -> dict[str, tuple[str, ...]]:
        """The annotations of each image, by its number."""
        found: dict[str, list[str]] = {}
        folder = self.annotation_folder
        if folder is None:
            return {}
        require(folder.is_dir(), f"no folder of annotations at {folder}: give the folder with clouds.txt and the like")
        for file in sorted(folder.glob("*.txt")):
            if file.stem.endswith("_r1") or file.stem.lower().startswith(("readme", ".")):
                continue
            for number in _lines(file):
                wrong = f"{file} should list numbers of images, one per line, but holds {number[:20]!r}"
                require(number.isdigit(), f"{wrong}: remove the file, or give another annotation_folder")
                found.setdefault(str(int(number)), []).append(_as_tag(file.stem))
        return {number: tuple(annotations) for number, annotations in found.items()}

    def _split(self) -> tuple[tuple[FolderIndex, np.ndarray], tuple[FolderIndex, np.ndarray]]:
        return super()._split() if self.examples is None else self._split_by_examples

    @cached_property
    def _split_by_examples(self) -> tuple[tuple[FolderIndex, np.ndarray], tuple[FolderIndex, np.ndarray]]:
        """The split by ``examples``, cached because it reads the tags of every image."""
        require(self.root.is_dir(), f"no folder of images at {self.root}: give the root of the data set")
        index = self._index(self.root)
        names = [index.name(row) for row in range(len(index))]
        order = np.argsort([int(number_of(name) or 0) for name in names], kind="stable")
        total = np.cumsum([len(tags) for tags in self._tags_of([names[row] for row in order])])
        count = int((total <= self.examples).sum())
        require(count > 0, f"the first image has more than {self.examples} tags: set examples higher")
        return (index, np.sort(order[:count])), (index, np.sort(order[count:]))


class TagTable(TaggedSource, FolderSource):
    """Images of a folder, with their tags in a CSV file of lines ``file,tags`` or ``file,tags,annotations``.

    Files are relative to ``root``. Tags are separated by spaces, or by semicolons where there is one. A first line
    that begins with ``file`` is a heading.

    Args:
        root: folder of the images.
        table: the CSV file; None for ``root/tags.csv``.
        channels, on_bad, eval_share, limit, orient: see ``ImageFolder``.
    """

    def __init__(
        self,
        root: Path,
        table: Path | None = None,
        channels: Channels = 3,
        on_bad: OnBad = "skip",
        eval_share: BelowOne = 0.1,
        limit: PositiveInt | None = None,
        orient: bool = False,
    ) -> None:
        super().__init__(root, channels, on_bad, eval_share, limit, orient)
        self.table = self.root / "tags.csv" if table is None else Path(table).expanduser()

    def annotations(self, images: ImageSplit) -> TagLists:
        require(
            any(annotations for _, annotations in self._rows.values()),
            f"{self.table} has no third column of annotations: add one, or predict tags",
        )
        return [self._rows.get(name, ((), ()))[1] for name in self._relative(images)]

    def tags(self, images: ImageSplit) -> TagLists:
        return [self._rows.get(name, ((), ()))[0] for name in self._relative(images)]

    def _relative(self, images: ImageSplit) -> list[str]:
        """Return the names of images relative to ``root``, even where the split is a folder such as ``root/train``."""
        assert isinstance(images, FolderSplit)
        below = images.index.root.relative_to(self.root).as_posix()
        return [name if below == "." else f"{below}/{name}" for name in _names(images)]

    @cached_property
    def _rows(self) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
        """The rows of the table: tags and annotations of each file."""
        found: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {}
        try:
            with open(self.table, newline="", encoding="utf-8-sig") as file:
                for number, row in enumerate(csv.reader(file), 1):
                    if not row or (number == 1 and row[0].strip().lower() == "file"):
                        continue
                    line = f"{self.table}, line {number}"
                    require(
                        len(row) in (2, 3),
                        f"{line} should be file,tags or file,tags,annotations, but has {len(row)} columns: separate "
                        "tags by spaces or ;",
                    )
                    name = row[0].strip().removeprefix("./")
                    require(name not in found, f"{line} repeats {name}: give each file one line")
                    found[name] = (_tags_in(row[1]), _tags_in(row[2]) if len(row) == 3 else ())
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"the table of tags {self.table} cannot be read: {error}") from error
        absent = next((name for name in found if not (self.root / name).is_file()), None)
        require(absent is None, f"{self.table} names {absent}, which is not below {self.root}")
        return found


class DigitTags(TaggedSource, Digits):
    """scikit-learn's digits with tags for each digit: its name, and properties of the number and of its shape."""

    class_tags = (
        ("zero", "even", "square", "small", "round", "loop"),
        ("one", "odd", "square", "small", "straight"),
        ("two", "even", "prime", "small", "curved"),
        ("three", "odd", "prime", "small", "curved"),
        ("four", "even", "square", "small", "straight"),
        ("five", "odd", "prime", "large", "curved"),
        ("six", "even", "composite", "large", "round", "loop"),
        ("seven", "odd", "prime", "large", "straight"),
        ("eight", "even", "composite", "large", "round", "loop", "double"),
        ("nine", "odd", "square", "composite", "large", "round", "loop"),
    )

    def tags(self, images: ImageSplit) -> TagLists:
        assert images.labels is not None
        return [self.class_tags[label] for label in images.labels]


def number_of(name: str) -> str:
    """Return the number at the end of an image's name, without leading zeros ("12" for im0012.jpg), or ""."""
    found = re.search(r"(\d+)\.\w+$", name)
    return str(int(found[1])) if found else ""


def _names(images: ImageSplit) -> list[str]:
    assert isinstance(images, FolderSplit)
    return [images.index.name(row) for row in images.rows]


def _lines(file: Path) -> list[str]:
    """Return the lines of a file that are not empty; none where the file is missing."""
    try:
        return [line.strip() for line in file.read_text("utf-8", "replace").splitlines() if line.strip()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from error


def _tags_in(cell: str) -> tuple[str, ...]:
    return _unique_tags(cell.split(";") if ";" in cell else cell.split())


def _as_tag(text: str) -> str:
    """Return a tag as one word: spaces become underscores, as in word2vec's phrases."""
    return "_".join(text.split())


def _unique_tags(texts: Iterable[str]) -> tuple[str, ...]:
    """Return tags in their order, each once."""
    return tuple(dict.fromkeys(tag for tag in map(_as_tag, texts) if tag))
