"""Workloads around the networks: reading images, and scoring samples."""

import io
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import Compose, InterpolationMode, RandomHorizontalFlip, Resize, ToTensor
from torchvision.transforms import RandomCrop as PillowCrop

from rcg_lightning.bench.evaluation_cost import random_network, streaming
from rcg_lightning.bench.execution import Execution
from rcg_lightning.bench.workload import OfficialCost, Variants, Workload
from rcg_lightning.data.decode import FORMAT_OF, decode
from rcg_lightning.data.folder_index import scan_folder
from rcg_lightning.data.numpy_rng import uniform
from rcg_lightning.data.transforms import RandomCrop
from rcg_lightning.metrics.feature_extractors import InceptionExtractor
from rcg_lightning.types import require


class Input(Workload):
    """From the bytes of a JPEG file to the pixels of a random crop, as in ImageNet's configs.

    The baseline is the official transform, with Pillow. Ours ends with 8-bit pixels; the device makes them floats.
    """

    name = "decode, resize, crop and mirror JPEG files"

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

    @property
    def official(self) -> dict[str, OfficialCost]:
        return {"same work": OfficialCost(0.0059, 2)}

    def prepare(self, device: torch.device, execution: Execution | None = None) -> Variants:
        files = jpeg_files(self.folder)
        transform = RandomCrop(256)
        random = uniform(transform.n_random, np.arange(len(files)))  # crop positions, the same in every run
        steps = [Resize(256, InterpolationMode.BICUBIC), PillowCrop(256), RandomHorizontalFlip(), ToTensor()]
        official = Compose(steps)

        def work() -> None:
            for i, content in enumerate(files):
                transform(decode(content, 3), random[i], mirror=i % 2 == 0).contiguous()

        def baseline() -> None:
            for content in files:
                official(Image.open(io.BytesIO(content)).convert("RGB"))

        return Variants(work, len(files), baseline)


class Decoding(Workload):
    """Decoding of JPEG files alone, by one library."""

    def __init__(self, library: str, folder: Path | None = None) -> None:
        self.library, self.folder = library, folder
        self.name = f"decode JPEG files, {library}"

    def prepare(self, device: torch.device, execution: Execution | None = None) -> Variants:
        files, read = jpeg_files(self.folder), DECODERS[self.library]

        def work() -> None:
            for content in files:
                read(content)

        return Variants(work, len(files))


def by_torchvision(content: bytes) -> object:
    """Decode as this project does."""
    return decode(content, 3)


def by_pillow(content: bytes) -> object:
    """Decode as the official code does."""
    return Image.open(io.BytesIO(content)).convert("RGB")


def by_pillow_scaled(content: bytes) -> object:
    """Decode at 1/2, 1/4 or 1/8 of the size, if at least 256 pixels remain: fewer cosines, other pixels."""
    image = Image.open(io.BytesIO(content))
    image.draft("RGB", (256, 256))
    return image.convert("RGB")


DECODERS = {"torchvision": by_torchvision, "Pillow": by_pillow, "Pillow, scaled by DCT": by_pillow_scaled}


def jpeg_files(folder: Path | None, count: int = 32) -> list[bytes]:
    """Read the first files of a folder; without a folder, generate noise images of ImageNet's usual size."""
    if folder is not None:
        index = scan_folder(folder)
        found = [row for row in range(len(index)) if FORMAT_OF[Path(index.name(row)).suffix.lower()] == "JPEG"]
        require(bool(found), f"{folder} holds no JPEG files: give another folder with --images")
        return [index.read(row) for row in found[:count]]
    generated = []
    for seed in range(count):
        coarse = (256 * uniform(47 * 63 * 3, seed)).astype(np.uint8).reshape(47, 63, 3)
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=92)
        generated.append(buffer.getvalue())
    return generated


class Scoring(Workload):
    """Inception features and moments of images in memory."""

    def __init__(self, count: int = 32) -> None:
        self.count = count
        self.name = "FID and IS of images in memory"

    def prepare(self, device: torch.device, execution: Execution | None = None) -> Variants:
        with tempfile.TemporaryDirectory() as name:
            _, path = random_network(Path(name))
            extractor = InceptionExtractor(path)
            extractor.setup()
        coarse = torch.rand(self.count, 3, 32, 32, device=device)
        images = torch.nn.functional.interpolate(coarse, size=(256, 256), mode="bilinear")

        @torch.no_grad()
        def work() -> None:
            streaming(images, extractor)

        return Variants(work, self.count)
