"""What a data set holds: sizes, colours, duplicates and damage, and what training makes of them."""

import hashlib
import io
import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rcg_lightning.data import numpy_rng
from rcg_lightning.data.decode import Unreadable, opened_image, to_pil
from rcg_lightning.data.image_folders import FolderSplit
from rcg_lightning.data.image_split import ImageSplit
from rcg_lightning.errors import UserError
from rcg_lightning.evaluation.image_grid import image_grid, save_png
from rcg_lightning.planning.duplicates import count_repeats, tiny
from rcg_lightning.planning.machine import Machine

SAMPLE = 10_000  # images of a large data set that are decoded
SECONDS = 25.0  # that decoding them may take
SHEET, THUMBNAIL = 96, 64
FEWEST, FEW, LEAST_READABLE = 50, 500, 0.5
_ROTATED, _EXIF_ORIENTATION = range(2, 9), 0x0112


@dataclass
class DataReport:
    """Counts of a data set's images, and of a random sample of them that was decoded.

    Attributes:
        train, evaluation: images of each split.
        left_out: files that are no images, by reason.
        sample: images that were opened.
        unreadable: those that could not be read.
        sides: 5th, 50th and 95th percentile of the shorter side in pixels.
        aspect: the same of the longer side over the shorter one.
        shorter: (sample,) ascending quantiles of the shorter side, 101 of them.
        grey, rotated, transparent: images with grey values only, with an EXIF rotation, with transparency.
        exact, near: images that repeat an earlier one of the sample.
        classes: folders that could be classes, with their number of images; empty without.
        labelled: whether the source itself gives classes.
        damaged: up to three unreadable files with the reason.
    """

    train: int
    evaluation: int
    left_out: dict[str, int] = field(default_factory=dict)
    sample: int = 0
    unreadable: int = 0
    sides: list[int] = field(default_factory=list)
    aspect: list[float] = field(default_factory=list)
    shorter: list[float] = field(default_factory=list)
    grey: int = 0
    rotated: int = 0
    transparent: int = 0
    exact: int = 0
    near: int = 0
    classes: dict[str, int] = field(default_factory=dict)
    labelled: bool = False
    damaged: list[str] = field(default_factory=list)

    @property
    def images(self) -> int:
        return self.train + self.evaluation

    @property
    def readable(self) -> int:
        return self.sample - self.unreadable

    @property
    def is_grey(self) -> bool:
        return self.grey == self.readable

    def share_below(self, size: int) -> float:
        """Return the share of the images whose shorter side is smaller than ``size`` pixels."""
        return float(np.mean(np.asarray(self.shorter) < size)) if self.shorter else 0.0

    def check(self, where: object) -> None:
        """Raise UserError for data that no training can use."""
        if self.images < FEWEST:
            raise UserError(f"{where} holds {self.images} images, too few to learn from: give at least {FEWEST}")
        if self.unreadable > (1 - LEAST_READABLE) * self.sample:
            first = self.damaged[0] if self.damaged else "unknown"
            raise UserError(
                f"{where}: {self.unreadable} of {self.sample} images cannot be read (the first: {first}): repair or "
                "remove them"
            )
        if self.readable > 1 and self.exact + self.near >= self.readable - 1:
            raise UserError(f"{where}: all images are the same: there is nothing to learn, give different images")

    def lines(self, size: int) -> list[str]:
        """Describe the data, and what training at ``size`` makes of them."""
        of = "" if self.sample == self.images else f" (of {self.sample:,} decoded)"
        splits = f"{self.images:,} images: {self.train:,} to train on, {self.evaluation:,} to evaluate"
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.left_out.items()))
        found = [splits + (f"; left out {sum(self.left_out.values()):,} other files ({reasons})" if reasons else "")]
        if self.unreadable:
            found.append(f"{self.unreadable:,} unreadable{of}, such as {self.damaged[0]}: another image replaces each")
        if len(self.classes) > 1 and not self.labelled:
            found.append(f"{len(self.classes)} folders: --condition class takes each for a class")
        low, middle, high = self.sides
        ratio = f", {self.aspect[0]:.2g} to {self.aspect[2]:.2g} times as long" if self.aspect[2] > 1.005 else ""
        sides = f"{low}" if low == high else f"{low} to {high}, mostly {middle}"
        colour = "grey" if self.is_grey else f"colour, {self.grey:,} grey" if self.grey else "colour"
        found.append(f"shorter side {sides} pixels{ratio}; {colour}{of}")
        if self.rotated:
            found.append(f"{self.rotated:,} with a camera's rotation{of}: turned upright")
        if self.transparent:
            found.append(f"{self.transparent:,} with transparency{of}: it is dropped")
        if self.exact or self.near:
            found.append(f"{self.exact:,} exact and {self.near:,} near duplicates{of}")
        lost = 1 - 1 / self.aspect[1]
        crop = f"; the centre square is kept, {lost:.0%} of a middling image is cut off" if lost > 0.005 else ""
        enlarged = self.share_below(size)
        found.append(f"trained at {size} x {size}{crop}" + (f"; {enlarged:.0%} are enlarged" if enlarged else ""))
        return found

    def warnings(self, size: int) -> list[str]:
        """Describe what will limit the result, with advice."""
        found = []
        if self.images < FEW:
            found.append(f"{self.images} images are few: expect copies of them; {FEW} or more give new images")
        if self.share_below(size) > 0.5:
            found.append(f"most images are smaller than --size {size}, so samples will be blurred: take a smaller one")
        repeated = self.exact + self.near
        if repeated > 0.1 * max(self.readable, 1):
            found.append(
                f"{repeated / self.readable:.0%} of the images repeat others, as the frames of a video do: thin them "
                "out, or generated images will copy them, and evaluation images are hardly new ones"
            )
        if self.unreadable > 0.05 * self.sample:
            found.append(f"{self.unreadable / self.sample:.0%} of the images cannot be read: repair them first")
        return found

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")


def examine(train: ImageSplit, evaluation: ImageSplit, machine: Machine) -> tuple[DataReport, list[Tensor]]:
    """Return the report of a data set and thumbnails, uint8 (3, H, W), of images chosen at random.

    At most ``SAMPLE`` images are decoded, in at most ``SECONDS``.
    """
    report = DataReport(len(train), len(evaluation))
    if isinstance(train, FolderSplit):
        report.left_out = dict(train.index.left_out)
        named = Counter(train.index.folders[train.rows].tolist())
        report.classes = {train.index.classes[row]: count for row, count in sorted(named.items()) if row >= 0}
    report.labelled = train.labels is not None
    order = numpy_rng.permutation(report.images, 0)[:SAMPLE]  # at random, as time may end it anywhere
    versions, digests, sizes, sheet = [], [], [], []
    start = machine.now()
    for number, position in enumerate(order):
        split, row = (train, position) if position < len(train) else (evaluation, position - len(train))
        report.sample += 1
        try:
            image, digest, shape = _opened(split, int(row), report)
        except (Unreadable, OSError) as error:
            report.unreadable += 1
            if len(report.damaged) < 3:
                report.damaged.append(f"{split.name(int(row))} ({getattr(error, 'strerror', None) or error})")
            continue
        versions.append(tiny(image))
        digests.append(digest)
        sizes.append(shape)
        if len(sheet) < SHEET:
            sheet.append(_thumbnail(image))
        if number >= FEW and machine.since(start) > SECONDS:
            break
    if sizes:
        _summarise(report, np.asarray(sizes, np.float64))
        repeats = count_repeats(np.stack(versions), digests)
        report.exact, report.near = repeats.exact, repeats.near
    return report, sheet


def write_sheet(path: Path, sheet: list[Tensor]) -> None:
    """Write the contact sheet: thumbnails in a grid."""
    save_png(Image.fromarray(image_grid(torch.stack(sheet), 12)), path)


def _opened(split: ImageSplit, row: int, report: DataReport) -> tuple[Image.Image, bytes, tuple[int, int]]:
    """Return an image, small where its format can be decoded so, a digest of its bytes, and its width and height."""
    if not isinstance(split, FolderSplit):
        pixels = split.load(row).numpy()
        report.grey += len(pixels) == 1
        return to_pil(pixels), hashlib.blake2b(pixels.tobytes(), digest_size=16).digest(), pixels.shape[:0:-1]
    content = split.index.read(split.rows[row])
    with opened_image(io.BytesIO(content)) as image:
        shape, transparent = image.size, image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
        rotated = image.getexif().get(_EXIF_ORIENTATION) in _ROTATED
        image.draft("RGB", (THUMBNAIL, THUMBNAIL))  # JPEG decodes an eighth of the size in a fraction of the time
        image.load()
        small = image.convert("RGB")
    report.rotated += rotated
    report.transparent += transparent
    report.grey += _has_no_colour(small)
    return small, hashlib.blake2b(content, digest_size=16).digest(), shape


def _has_no_colour(image: Image.Image) -> bool:
    pixels = np.asarray(image.resize((16, 16), Image.Resampling.BOX), np.int16)
    return bool(np.ptp(pixels, axis=2).max() <= 4)


def _thumbnail(image: Image.Image) -> Tensor:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.convert("RGB").crop((left, top, left + side, top + side))
    pixels = np.asarray(square.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC))
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def _summarise(report: DataReport, sizes: np.ndarray) -> None:
    """Fill in the quantiles of sizes (N, 2)."""
    shorter, longer = sizes.min(1), sizes.max(1)
    report.sides = [round(value) for value in np.quantile(shorter, [0.05, 0.5, 0.95])]
    report.aspect = [float(value) for value in np.quantile(longer / shorter, [0.05, 0.5, 0.95])]
    report.shorter = np.quantile(shorter, np.linspace(0, 1, 101)).tolist()
