"""`rcg reconstruct`: how well a codec gives images back."""

from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from rcg_lightning.cli.parsing import call
from rcg_lightning.config import describe
from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.data.index_samplers import rank_range
from rcg_lightning.data.shards import Shard
from rcg_lightning.evaluation.image_grid import labelled_grid
from rcg_lightning.evaluation.protocols import Protocol
from rcg_lightning.evaluation.results import content_of, report
from rcg_lightning.metrics.feature_extractors import FeatureExtractor
from rcg_lightning.metrics.metric_name import metric_name
from rcg_lightning.metrics.reconstruction import Backbone, Reconstruction
from rcg_lightning.trainer import Trainer
from rcg_lightning.types import Batch, Codec, require, to_uint8


class Reconstructed(LightningModule):
    """Scores what a codec makes of images, on any number of processes.

    Args:
        codec: encodes and decodes.
        metric: what is computed.
        shown: images to keep, of this process.
    """

    def __init__(self, codec: Codec, metric: Reconstruction, shown: int) -> None:
        super().__init__()
        self.codec, self.metric, self.shown = codec, metric, shown
        self.needs = frozenset({"image"})  # also where the codec would read a store
        self.pairs: list[tuple[Tensor, Tensor]] = []
        self.metrics: dict[str, float] = {}

    def predict_step(self, batch: Batch, batch_idx: int) -> None:
        made = to_uint8(self.codec.decode(self.codec.encode(batch)).float())
        original = to_uint8(batch["image"])  # type: ignore[reportTypedDictNotRequiredAccess]
        with torch.autocast(made.device.type, enabled=False):
            self.metric.update(original, made)
        if sum(len(pair[0]) for pair in self.pairs) < self.shown:
            self.pairs.append((original[: self.shown].cpu(), made[: self.shown].cpu()))

    def on_predict_end(self) -> None:
        self.metrics = self.metric.compute()


def reconstruct(
    codec: Codec,
    data: ImageDataModule,
    extractor: FeatureExtractor | None = None,
    lpips: Backbone | None = None,
    split: Literal["train", "eval"] = "eval",
    number: int | None = None,
    images: int = 0,
    batch_size: int = 64,
    out: Path | None = None,
    json: bool = False,
    accelerator: str = "auto",
    devices: int | str = 1,
    num_nodes: int = 1,
    precision: str | None = None,
) -> None:
    """Score what a codec gives back: PSNR, SSIM, LPIPS and the Fréchet distance to the originals (rFID).

    Args:
        codec: such as VQTokens with the folder of its autoencoder.
        data: the images.
        extractor: features for the Fréchet distance: InceptionExtractor for rFID; None leaves it out.
        lpips: network of LPIPS (alex in most metrics); None leaves it out.
        split: which images, those held out or those for training.
        number: only so many, the first; None for all.
        images: show so many next to what is given back, in a image next to ``out``.
        batch_size: images at once; changes speed and memory alone.
        out: JSON file to write metrics and protocol to.
        json: print the same JSON and nothing else.
        accelerator: cpu, gpu, mps or auto.
        devices: processes on this machine.
        num_nodes: machines, where the job was started on several.
        precision: of the codec's surroundings; None takes bf16-mixed on GPUs that have it and 32-true elsewhere.
    """
    require(codec.makes == "image", f"{type(codec).__name__} gives back {codec.makes}s, not images: choose another")
    require(not images or out is not None, "--images writes a image next to --out: give it, too")
    data.prepare_data()
    codec.shape(data.spec)
    if extractor is not None:
        extractor.setup()
    there = len(data.images(split))
    count = there if number is None else number
    require(1 < count <= there, f"{count} images are asked for, 2 to {there} can be scored of {split}")
    module = Reconstructed(codec, Reconstruction(extractor, lpips=lpips), images)
    folder = Path(".") if out is None else out.parent
    trainer = Trainer(
        folder,
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        precision=precision,
        logger=False,
        enable_progress_bar=not json,
    )
    start, stop = rank_range(count, trainer.global_rank, trainer.world_size)
    data.batch_size = batch_size
    data.extract(split, [Shard(0, start, stop)])
    trainer.predict(module, datamodule=data, return_predictions=False)
    if not trainer.is_global_zero:
        return
    named = {_name(kind, extractor, lpips, count, split): value for kind, value in module.metrics.items()}
    content = content_of([named], _record(codec, data, extractor, split, count))
    if images and out is not None:
        content["image"] = _show(module.pairs, images, out)
    report(content, out, json)


def _name(kind: str, extractor: FeatureExtractor | None, lpips: str | None, count: int, split: str) -> str:
    by = extractor.name if kind == "rfd" and extractor is not None else lpips if kind == "lpips" else None
    return metric_name(kind, by or "pixels", count, split)


def _record(
    codec: Codec, data: ImageDataModule, extractor: FeatureExtractor | None, split: str, count: int
) -> dict[str, object]:
    found = data.images(split)
    spec = {"set": split, "identity": found.fingerprint, "images": len(found), "resize": data.transform.describe(False)}
    made_by = {"codec": describe(codec), "codec_identity": getattr(codec, "identity", None)}
    return Protocol("reconstruction").record(extractor or "pixels", spec, count) | made_by


def _show(pairs: list[tuple[Tensor, Tensor]], count: int, out: Path) -> str:
    """Write originals above what was made of them, and return the image's name."""
    original, made = (torch.cat(part)[:count] for part in zip(*pairs, strict=True))
    path = out.with_name(f"{out.stem}-images.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    labelled_grid([("originals", original), ("given back", made)], count).save(path)
    return path.name


def main(name: str, argv: list[str]) -> None:
    """Parse the command line of `rcg reconstruct`; --json may stand without a value."""
    argv = ["--json=true" if word == "--json" else word for word in argv]
    examples = [
        "rcg reconstruct --codec VQTokens --codec.folder runs/tokenizer/autoencoder --data.source Digits",
        "rcg reconstruct … --extractor InceptionExtractor --lpips alex --images 12 --out runs/reconstruction.json",
    ]
    call(reconstruct, name, argv, examples)
