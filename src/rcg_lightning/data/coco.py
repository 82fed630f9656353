"""COCO-Stuff as GANs of complex scenes use it: which images, and which combinations of classes training has seen."""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from rcg_lightning.data.folder_index import cache_folder, index_folder
from rcg_lightning.data.image_folders import FolderSplit, OnBad, check_on_bad
from rcg_lightning.data.image_split import ImageSplit, Source, check_channels, chosen
from rcg_lightning.data.imagenet_lt import find
from rcg_lightning.errors import UserError
from rcg_lightning.types import require

log = logging.getLogger(__name__)
Subset = Literal["eval", "seen", "unseen", "validation"]
LEAST_AREA = 0.02  # share of the image that an object's box must exceed
LEAST, MOST = 3, 8  # objects of an image
VALIDATION = 1024  # images of val2017 that are not evaluated on


@dataclass(frozen=True)
class Scene:
    """An image's file name, and the classes of its objects."""

    name: str
    classes: frozenset[int]


class CocoStuff(Source):
    """COCO-Stuff of 2017 as IC-GAN has it, without labels: 75,777 training and 2,050 evaluation images.

    An image is taken where it has stuff annotated and 3 to 8 objects, things and stuff together. An object counts
    where its box covers more than 2 % of the image, its class is not ``other``, and it is no crowd; officially
    crowds do count in the images of val2017. Of these the first 1,024, in the order of the annotations, are
    for validation, the others for evaluation.

    An evaluation image is ``seen`` where a training image has exactly the same set of classes among its counted
    objects, and ``unseen`` where none has (officially: Hamming distance 0, or above, between the sets): 675 and 1,375.

    ``root`` holds ``train2017`` and ``val2017`` with the images, and ``annotations`` with ``instances_*.json`` and
    ``stuff_*.json`` of both. What is found in the annotations is cached.

    Args:
        root: where these are.
        subset: which images are held out: ``eval``, those of it that are ``seen`` or ``unseen``, or ``validation``.
        lists: folder of lists to use in place of annotations: ``train.txt`` and one called after each subset that is
            used, with an image's file name in each line.
        validation: how many images of val2017 are for validation.
        channels: 3 (RGB) or 1 (grey); every image is converted.
        on_bad: what to do with a file that cannot be read: ``skip`` replaces it and says so, ``stop`` ends the run.
        limit: train on that many images only, always the same.
        orient: turn images as the camera's EXIF tag says.
    """

    def __init__(
        self,
        root: Path,
        subset: Subset = "eval",
        lists: Path | None = None,
        validation: int = VALIDATION,
        channels: int = 3,
        on_bad: OnBad = "skip",
        limit: int | None = None,
        orient: bool = False,
    ) -> None:
        self.root = Path(root).expanduser()
        self.lists = None if lists is None else Path(lists).expanduser()
        known = ", ".join(get_args(Subset))
        require(subset in get_args(Subset), f"the subsets of COCO-Stuff are {known}, not {subset!r}")
        require(validation >= 0, f"validation is a number of images, not {validation}")
        self.subset: Subset = subset
        self.validation_size = validation
        self.on_bad: OnBad = check_on_bad(on_bad)
        self.channels, self.limit, self.orient = check_channels(channels), limit, orient

    def train(self) -> ImageSplit:
        names = self._listed("train") if self.lists is not None else [scene.name for scene in self._scenes("train")]
        return self._images("train", names, self.limit)

    def evaluation(self) -> ImageSplit:
        names = self._listed(self.subset) if self.lists is not None else self._chosen()
        return self._images("val", names, None)

    def _images(self, split: str, names: list[str], limit: int | None) -> ImageSplit:
        folder = self.root / f"{split}2017"
        which = "train" if split == "train" else self.subset
        require(bool(names), f"there are no {which} images of COCO-Stuff in {self.root}: is what tells them complete?")
        index = index_folder(folder)
        rows, _ = find(index, names, f"COCO-Stuff's {which}")
        return FolderSplit(index, rows[chosen(len(rows), limit)], None, None, self.channels, self.on_bad, self.orient)

    def _listed(self, name: str) -> list[str]:
        assert self.lists is not None
        path = self.lists / f"{name}.txt"
        require(path.is_file(), f"no list of images at {path}: each of its lines is an image's file name")
        return [line.strip().rpartition("/")[2] for line in path.read_text().splitlines() if line.strip()]

    def _chosen(self) -> list[str]:
        """Return the names of the evaluation images."""
        scenes = self._scenes("val")
        if self.subset == "validation":
            return [scene.name for scene in scenes[: self.validation_size]]
        scenes = scenes[self.validation_size :]
        if self.subset == "eval":
            return [scene.name for scene in scenes]
        known = {scene.classes for scene in self._scenes("train")}
        return [scene.name for scene in scenes if (scene.classes in known) == (self.subset == "seen")]

    def _scenes(self, split: str) -> list[Scene]:
        folder = self.root / "annotations"
        files = [folder / f"{kind}_{split}2017.json" for kind in ("instances", "stuff")]
        for file in files:
            require(file.is_file(), f"no annotations at {file}: fetch those of COCO and of COCO-Stuff, or give lists")
        return cached_scenes(files[0], files[1], crowds=split == "val")


def cached_scenes(instances: Path, stuff: Path, crowds: bool) -> list[Scene]:
    """Return ``scenes``, from the cache where neither file has changed."""
    stamps = [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in (instances, stuff)]
    key = hashlib.sha256(json.dumps([stamps, crowds, LEAST_AREA, LEAST, MOST]).encode()).hexdigest()[:24]
    place = cache_folder() / "coco" / f"{key}.json"
    try:
        return [Scene(name, frozenset(classes)) for name, classes in json.loads(place.read_text())]
    except (OSError, ValueError, TypeError):
        pass  # none yet, or broken
    found = scenes(instances, stuff, crowds)
    draft = place.with_name(f"{key}-{os.getpid()}.json")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps([[scene.name, sorted(scene.classes)] for scene in found]))
        os.replace(draft, place)
    except OSError as error:
        log.info("what was found in %s is not cached: %s", stuff, error)
    return found


def scenes(instances: Path, stuff: Path, crowds: bool) -> list[Scene]:
    """Return the images that ``CocoStuff`` takes, in the order of the annotations.

    Args:
        instances: COCO's annotations of things.
        stuff: COCO-Stuff's annotations, of the same images.
        crowds: whether an annotation of a crowd counts as an object.

    Raises:
        UserError: a file is no such annotations, or they are of other images.
    """
    content = annotations(instances)
    images = {image["id"]: image for image in content["images"]}
    found: dict[int, list[int]] = {}
    for file in (instances, stuff):
        if file == stuff:
            content = annotations(stuff)  # hundreds of megabytes: one file at a time
            with_stuff = {each["image_id"] for each in content["annotations"]}
        for image, kind in counted(content, images, file, crowds):
            found.setdefault(image, []).append(kind)
    return [
        Scene(image["file_name"], frozenset(found[number]))
        for number, image in images.items()
        if number in with_stuff and LEAST <= len(found.get(number, ())) <= MOST
    ]


def annotations(path: Path) -> dict[str, Any]:
    """Return the content of a file of annotations."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}): fetch the annotations again") from error
    fits = isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys()
    require(fits, f"{path} holds no annotations: it should have images, annotations and categories")
    return content


def counted(content: dict[str, Any], images: dict[int, Any], where: Path, crowds: bool) -> Iterator[tuple[int, int]]:
    """Yield image and class of each object that counts."""
    other = {kind["id"] for kind in content["categories"] if kind["name"] == "other"}
    for each in content["annotations"]:
        image = images.get(each["image_id"])
        require(image is not None, f"{where} annotates image {each['image_id']}, which COCO's annotations have not")
        assert image is not None
        _, _, width, height = each["bbox"]
        large = width * height > LEAST_AREA * image["width"] * image["height"]
        if large and each["category_id"] not in other and (crowds or each.get("iscrowd") != 1):
            yield each["image_id"], each["category_id"]
