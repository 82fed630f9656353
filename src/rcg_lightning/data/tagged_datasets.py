"""Images with words that people gave them: MIR-Flickr's layout, a table of tags, and the digits."""

import csv
import re
from abc import abstractmethod
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np

from rcg_lightning.data.datasets import Digits
from rcg_lightning.data.image_folders import FolderIndex, FolderSource, FolderSplit, OnBad
from rcg_lightning.data.image_split import ImageSplit, Source
from rcg_lightning.errors import UserError
from rcg_lightning.types import require

Lists = list[tuple[str, ...]]  # the words of each image, each word once


class TaggedSource(Source):
    """Images with tags, and perhaps with annotations: words that were given to every image they fit."""

    @abstractmethod
    def tags(self, images: ImageSplit) -> Lists:
        """Return the tags of each of the images of a split, empty where it has none."""

    def annotations(self, images: ImageSplit) -> Lists:
        """Return the annotations of each of the images of a split; UserError where the source has none."""
        raise UserError(f"{type(self).__name__} has no annotations: predict tags, or give a source that has some")


class MIRFlickr(TaggedSource, FolderSource):
    """``root/im12.jpg`` with its tags, one a line, in ``tags12.txt``: in ``root/meta/tags``, ``root/tags`` or ``root``.

    Annotations are files such as ``clouds.txt`` that list the numbers of images, one a line. The files ``…_r1.txt``,
    which list the clearest cases once more, are not read.

    Splits are those of ``FlatFolder``, so that stores serve both.

    Args:
        root: folder of the images.
        tag_folder: folder of the tag files, where it is none of the usual ones.
        annotation_folder: folder of the annotations; None for a set without.
        extra: whether annotations count as tags too, as published (Mirza & Osindero 2014).
        examples: train on the first images, by their numbers, that have together at most so many tags (published:
            150,000), and hold out the others; None holds out by a hash of names.
        channels, on_bad, eval, limit, orient: see ``ImageFolder``.
    """

    def __init__(
        self,
        root: Path,
        tag_folder: Path | None = None,
        annotation_folder: Path | None = None,
        extra: bool = True,
        examples: int | None = None,
        channels: int = 3,
        on_bad: OnBad = "skip",
        evaluation: float = 0.1,
        limit: int | None = None,
        orient: bool = False,
    ) -> None:
        super().__init__(root, channels, on_bad, evaluation, limit, orient)
        self.tag_folder, self.annotation_folder = tag_folder, annotation_folder
        self.extra, self.examples = extra, examples
        require(examples is None or examples > 0, f"examples is a positive number of tags, not {examples}")

    def tags(self, images: ImageSplit) -> Lists:
        return self._words(_names(images))

    def annotations(self, images: ImageSplit) -> Lists:
        given = self._annotations
        require(bool(given), "this set has no annotations: give their folder as annotation_folder, or predict tags")
        return [given.get(number_of(name), ()) for name in _names(images)]

    def _words(self, names: list[str]) -> Lists:
        folder = self._tag_folder()
        files = {name: folder / f"tags{number_of(name)}.txt" for name in names}
        require(
            not files or any(file.is_file() for file in files.values()),
            f"no tags in {folder}, such as {next(iter(files.values()), Path()).name}: give their folder as tag_folder",
        )
        more = self._annotations if self.extra else {}
        return [_distinct([*_lines(files[name]), *more.get(number_of(name), ())]) for name in names]

    def _tag_folder(self) -> Path:
        usual = [self.root / "meta" / "tags", self.root / "tags"]
        chosen = self.tag_folder or next((folder for folder in usual if folder.is_dir()), self.root)
        require(chosen.is_dir(), f"no folder of tags at {chosen}: give the one with tags1.txt as tag_folder")
        return chosen

    @cached_property
    def _annotations(self) -> dict[str, tuple[str, ...]]:
        """The annotations of each number."""
        found: dict[str, list[str]] = {}
        folder = self.annotation_folder
        if folder is None:
            return {}
        require(folder.is_dir(), f"no folder of annotations at {folder}: give the one with files such as clouds.txt")
        for file in sorted(folder.glob("*.txt")):
            if file.stem.endswith("_r1") or file.stem.lower().startswith("readme"):
                continue
            for number in _lines(file):
                says = f"{file} should list numbers of images, one a line, and holds {number[:20]!r}"
                require(number.isdigit(), f"{says}: take it away, or give another annotation_folder")
                found.setdefault(str(int(number)), []).append(_word(file.stem))
        return {number: tuple(words) for number, words in found.items()}

    def _split(self) -> tuple[tuple[FolderIndex, np.ndarray], tuple[FolderIndex, np.ndarray]]:
        return super()._split() if self.examples is None else self._first

    @cached_property
    def _first(self) -> tuple[tuple[FolderIndex, np.ndarray], tuple[FolderIndex, np.ndarray]]:
        """The split by ``examples``; made once, for it reads every image's tags."""
        require(self.root.is_dir(), f"no folder of images at {self.root}: give the root of the data set")
        index = self._index(self.root)
        names = [index.name(row) for row in range(len(index))]
        order = np.argsort([int(number_of(name) or 0) for name in names], kind="stable")
        total = np.cumsum([len(words) for words in self._words([names[row] for row in order])])
        first = int((total <= self.examples).sum())
        require(first > 0, f"the first image has more than {self.examples} tags: give more examples")
        return (index, np.sort(order[:first])), (index, np.sort(order[first:]))


class TagTable(TaggedSource, FolderSource):
    """Images of a folder, with their tags in a CSV of lines ``file,tags`` or ``file,tags,annotations``.

    Files are relative to ``root``; words stand between spaces or, where there is one, between semicolons. A first line
    that begins with ``file`` is a heading.

    Args:
        root: folder of the images.
        table: the CSV; None for ``root/tags.csv``.
        channels, on_bad, eval, limit, orient: see ``ImageFolder``.
    """

    def __init__(
        self,
        root: Path,
        table: Path | None = None,
        channels: int = 3,
        on_bad: OnBad = "skip",
        evaluation: float = 0.1,
        limit: int | None = None,
        orient: bool = False,
    ) -> None:
        super().__init__(root, channels, on_bad, evaluation, limit, orient)
        self.table = self.root / "tags.csv" if table is None else Path(table).expanduser()

    def annotations(self, images: ImageSplit) -> Lists:
        require(
            any(annotations for _, annotations in self._read.values()),
            f"{self.table} has no third column of annotations: add one, or predict tags",
        )
        return [self._read.get(name, ((), ()))[1] for name in self._relative(images)]

    def tags(self, images: ImageSplit) -> Lists:
        return [self._read.get(name, ((), ()))[0] for name in self._relative(images)]

    def _relative(self, images: ImageSplit) -> list[str]:
        """Names of images relative to root, also where they lie in root/train."""
        assert isinstance(images, FolderSplit)
        below = images.index.root.relative_to(self.root).as_posix()
        return [name if below == "." else f"{below}/{name}" for name in _names(images)]

    @cached_property
    def _read(self) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
        """Tags and annotations of each file."""
        found: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {}
        try:
            with open(self.table, newline="", encoding="utf-8-sig") as file:
                for number, row in enumerate(csv.reader(file), 1):
                    if not row or (number == 1 and row[0].strip().lower() == "file"):
                        continue
                    says = f"{self.table}, line {number}: should be file,tags or file,tags,annotations"
                    require(len(row) in (2, 3), f"{says}, and has {len(row)} columns: put tags between spaces or ;")
                    name = row[0].strip().removeprefix("./")
                    require(name not in found, f"{self.table}, line {number}: {name} stands there a second time")
                    found[name] = (_cell(row[1]), _cell(row[2]) if len(row) == 3 else ())
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"the table of tags {self.table} cannot be read: {error}") from error
        absent = next((name for name in found if not (self.root / name).is_file()), None)
        require(absent is None, f"{self.table} names {absent}, which is not below {self.root}")
        return found


class DigitTags(TaggedSource, Digits):
    """scikit-learn's digits with words for each digit: its name, and what holds of the number and of its shape."""

    words = (
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

    def tags(self, images: ImageSplit) -> Lists:
        assert images.labels is not None
        return [self.words[label] for label in images.labels]


def number_of(name: str) -> str:
    """Return the number at the end of an image's name without leading zeros: "12" of im0012.jpg; "" without one."""
    found = re.search(r"(\d+)\.\w+$", name)
    return str(int(found[1])) if found else ""


def _names(images: ImageSplit) -> list[str]:
    assert isinstance(images, FolderSplit)
    return [images.index.name(row) for row in images.rows]


def _lines(file: Path) -> list[str]:
    """Lines of a file that are not empty; none where there is no such file."""
    try:
        return [line.strip() for line in file.read_text("utf-8", "replace").splitlines() if line.strip()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from error


def _cell(text: str) -> tuple[str, ...]:
    return _distinct(text.split(";") if ";" in text else text.split())


def _word(text: str) -> str:
    """A tag as one word: spaces inside become underscores, as word2vec writes phrases."""
    return "_".join(text.split())


def _distinct(texts: Iterable[str]) -> tuple[str, ...]:
    """Words in their order, each once."""
    return tuple(dict.fromkeys(word for word in map(_word, texts) if word))
