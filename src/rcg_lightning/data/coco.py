"""COCO-Stuff for GANs of complex scenes: selected images, split by the combinations of classes seen in training."""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rcg_lightning.arguments import NonNegativeInt, PositiveInt
from rcg_lightning.artifacts import cache_folder, fingerprint, write_json
from rcg_lightning.data.folder_index import index_folder
from rcg_lightning.data.image_folders import FolderSplit, OnBad
from rcg_lightning.data.image_split import Channels, ImageSplit, Source, fixed_subset
from rcg_lightning.data.imagenet_lt import find_images
from rcg_lightning.errors import UserError
from rcg_lightning.types import require

log = logging.getLogger(__name__)
Subset = Literal["eval", "seen", "unseen", "validation"]
MIN_AREA = 0.02  # fraction of the image that an object's box must exceed
MIN_OBJECTS, MAX_OBJECTS = 3, 8  # in one image
VALIDATION = 1024  # images of val2017 that are not for evaluation


@dataclass(frozen=True)
class Scene:
    """An image: its file name and the classes of its objects."""

    name: str
    classes: frozenset[int]


class CocoStuff(Source):
    """COCO-Stuff of 2017 as in IC-GAN, without labels: 75,777 training and 2,050 evaluation images.

    An image is used if it has annotated stuff and 3 to 8 objects, things and stuff together. An object counts if its
    box covers more than 2 % of the image, its class is not ``other`` and it is not a crowd; as in the official code,
    crowds do count in val2017. Of the images of val2017 the first 1,024, in the order of the annotations, are for
    validation, the others for evaluation.

    An evaluation image is ``seen`` if a training image has exactly the same set of classes among its counted objects,
    and ``unseen`` otherwise (officially: Hamming distance of the sets 0, or above 0): 675 and 1,375 images.

    ``root`` holds ``train2017`` and ``val2017`` with the images, and ``annotations`` with ``instances_*.json`` and
    ``stuff_*.json`` of both. The selection is cached.

    Args:
        root: the folder above these.
        subset: the images of the split "eval": all (``eval``), its ``seen`` or ``unseen`` ones, or ``validation``.
        lists: folder of lists that replace the annotations: ``train.txt`` and one named after each subset that is
            used, with the file name of an image in each line.
        validation: number of images of val2017 that are for validation.
        channels: 3 (RGB) or 1 (grey); every image is converted.
        on_bad: ``skip`` replaces a file that cannot be read and logs a warning, ``stop`` ends the run.
        limit: number of training images to use, a fixed subset.
        orient: rotate images by the camera's EXIF tag.
    """

    def __init__(
        self,
        root: Path,
        subset: Subset = "eval",
        lists: Path | None = None,
        validation: NonNegativeInt = VALIDATION,
        channels: Channels = 3,
        on_bad: OnBad = "skip",
        limit: PositiveInt | None = None,
        orient: bool = False,
    ) -> None:
        self.root = Path(root).expanduser()
        self.lists = None if lists is None else Path(lists).expanduser()
        self.subset: Subset = subset
        self.validation_size = validation
        self.on_bad: OnBad = on_bad
        self.channels, self.limit, self.orient = channels, limit, orient

    def train(self) -> ImageSplit:
        names = self._listed("train") if self.lists is not None else [scene.name for scene in self._scenes("train")]
        return self._images("train", names, self.limit)

    def evaluation(self) -> ImageSplit:
        names = self._listed(self.subset) if self.lists is not None else self._evaluation_names()
        return self._images("val", names, None)

    def _images(self, split: str, names: list[str], limit: int | None) -> ImageSplit:
        folder = self.root / f"{split}2017"
        which = "train" if split == "train" else self.subset
        require(bool(names), f"there are no {which} images of COCO-Stuff in {self.root}: are the annotations complete?")
        index = index_folder(folder)
        rows, _ = find_images(index, names, f"COCO-Stuff's {which}")
        rows = rows[fixed_subset(len(rows), limit)]
        return FolderSplit(index, rows, None, None, self.channels, self.on_bad, self.orient)

    def _listed(self, name: str) -> list[str]:
        assert self.lists is not None
        path = self.lists / f"{name}.txt"
        require(path.is_file(), f"no list of images at {path}: it needs a line with the file name of each image")
        return [line.strip().rpartition("/")[2] for line in path.read_text().splitlines() if line.strip()]

    def _evaluation_names(self) -> list[str]:
        scenes = self._scenes("val")
        if self.subset == "validation":
            return [scene.name for scene in scenes[: self.validation_size]]
        scenes = scenes[self.validation_size :]
        if self.subset == "eval":
            return [scene.name for scene in scenes]
        seen = {scene.classes for scene in self._scenes("train")}
        return [scene.name for scene in scenes if (scene.classes in seen) == (self.subset == "seen")]

    def _scenes(self, split: str) -> list[Scene]:
        folder = self.root / "annotations"
        files = [folder / f"{kind}_{split}2017.json" for kind in ("instances", "stuff")]
        for file in files:
            require(file.is_file(), f"no annotations at {file}: download those of COCO and COCO-Stuff, or give lists")
        return cached_scenes(files[0], files[1], crowds=split == "val")


def cached_scenes(instances: Path, stuff: Path, crowds: bool) -> list[Scene]:
    """Return ``scenes``, from the cache where neither file has changed."""
    stamps = [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in (instances, stuff)]
    path = cache_folder("coco", f"{fingerprint([stamps, crowds, MIN_AREA, MIN_OBJECTS, MAX_OBJECTS])}.json")
    try:
        return [Scene(name, frozenset(classes)) for name, classes in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError):
        pass  # none yet, or broken
    found = scenes(instances, stuff, crowds)
    try:
        write_json(path, [[scene.name, sorted(scene.classes)] for scene in found], shared=True)
    except OSError as error:
        log.info("the scenes of %s are not cached: %s", stuff, error)
    return found


def scenes(instances: Path, stuff: Path, crowds: bool) -> list[Scene]:
    """Return the images that ``CocoStuff`` uses, in the order of the annotations.

    Args:
        instances: file of COCO's annotations of things.
        stuff: file of COCO-Stuff's annotations of the same images.
        crowds: whether an annotation of a crowd counts as an object.

    Raises:
        UserError: a file does not hold annotations, or they are of other images.
    """
    content = annotations(instances)
    images = {image["id"]: image for image in content["images"]}
    found: dict[int, list[int]] = {}
    for file in (instances, stuff):
        if file == stuff:
            content = annotations(stuff)  # hundreds of megabytes: one file at a time
            with_stuff = {item["image_id"] for item in content["annotations"]}
        for image, category in counted_objects(content, images, file, crowds):
            found.setdefault(image, []).append(category)
    return [
        Scene(image["file_name"], frozenset(found[number]))
        for number, image in images.items()
        if number in with_stuff and MIN_OBJECTS <= len(found.get(number, ())) <= MAX_OBJECTS
    ]


def annotations(path: Path) -> dict[str, Any]:
    """Read a file of annotations."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is not a JSON file ({error}): download the annotations again") from error
    fits = isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys()
    require(fits, f"{path} holds no annotations: it should have images, annotations and categories")
    return content


def counted_objects(
    content: dict[str, Any], images: dict[int, Any], where: Path, crowds: bool
) -> Iterator[tuple[int, int]]:
    """Yield image and class of each object that counts."""
    other = {category["id"] for category in content["categories"] if category["name"] == "other"}
    for item in content["annotations"]:
        image = images.get(item["image_id"])
        require(image is not None, f"{where} annotates image {item['image_id']}, which is not in COCO's annotations")
        assert image is not None
        _, _, width, height = item["bbox"]
        large = width * height > MIN_AREA * image["width"] * image["height"]
        if large and item["category_id"] not in other and (crowds or item.get("iscrowd") != 1):
            yield item["image_id"], item["category_id"]
