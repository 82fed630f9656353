"""Workloads around the networks: reading pictures, and scoring samples."""

import io
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from rcg_lightning.bench.workload import Baseline, Ways, Workload
from rcg_lightning.data.decode import decode
from rcg_lightning.data.geometry import RandomCrop
from rcg_lightning.evaluation.benchmark import random_network, streaming
from rcg_lightning.evaluation.extractors import InceptionExtractor


class Input(Workload):
    """From the bytes of a JPEG file to the pixels of a random crop, as ImageNet's configs read them."""

    def __init__(self, count: int = 32, folder: Path | None = None) -> None:
        self.count, self.folder = count, folder
        self.name = "decode, resize and crop JPEG files"

    @property
    def baselines(self) -> dict[str, Baseline]:
        return {"same work": Baseline(0.0059, 2)}

    def prepare(self, device: torch.device) -> Ways:
        files = self.files()
        geometry = RandomCrop(256)
        # any places will do for a timing, only the same ones in every run
        chance = np.random.default_rng(0).random((len(files), geometry.draws))

        def work() -> None:
            for content, u in zip(files, chance):
                geometry(decode(content, 3), u).contiguous()

        return Ways(work, len(files))

    def files(self) -> list[bytes]:
        """Return real files where a folder of them was given, else ones of ImageNet's usual size made of noise."""
        if self.folder is not None:
            found = sorted(path for path in self.folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
            return [path.read_bytes() for path in found[: self.count]]
        made = []
        for seed in range(self.count):
            # any noise will do for a timing, only the same in every run
            coarse = np.random.default_rng(seed).integers(0, 256, (47, 63, 3), dtype=np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=92)
            made.append(buffer.getvalue())
        return made


class Scoring(Workload):
    """Features and moments of generated pictures, through Inception, without a file."""

    def __init__(self, count: int = 32) -> None:
        self.count = count
        self.name = "FID and IS of pictures in memory"

    def prepare(self, device: torch.device) -> Ways:
        with tempfile.TemporaryDirectory() as name:
            _, path = random_network(Path(name))
            extractor = InceptionExtractor(path)
            extractor.setup()
        coarse = torch.rand(self.count, 3, 32, 32, device=device)
        pictures = torch.nn.functional.interpolate(coarse, size=(256, 256), mode="bilinear")

        @torch.no_grad()
        def work() -> None:
            streaming(pictures, extractor)

        return Ways(work, self.count)
