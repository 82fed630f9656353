"""Reconstructions of a data set by a codec, scored on any number of processes."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from rcg_lightning.config import describe
from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.data.index_samplers import rank_range
from rcg_lightning.data.shards import Shard
from rcg_lightning.evaluation.image_grid import labelled_grid, save_png
from rcg_lightning.evaluation.protocols import Protocol
from rcg_lightning.evaluation.results import content_of
from rcg_lightning.metrics.feature_extractors import FeatureExtractor
from rcg_lightning.metrics.metric_name import metric_name
from rcg_lightning.metrics.reconstruction import Backbone, Reconstruction
from rcg_lightning.trainer import Trainer
from rcg_lightning.types import Batch, Codec, require, to_uint8


class ReconstructionModule(LightningModule):
    """Scores what a codec makes of images.

    Args:
        codec: encodes and decodes.
        metric: what is computed.
        shown: images to store, of this process.
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


class CodecEvaluation:
    """What is asked of a codec: how well it gives back the images of one split.

    Args:
        codec: encodes and decodes.
        data: the images.
        extractor: features for the Fréchet distance; None leaves it out.
        lpips: network of LPIPS; None leaves it out.
        split: which images, ``train`` or ``eval``.
        number: score the first ones only; None for all.

    Raises:
        UserError: the codec does not fit the data, weights are missing, or there are fewer images.
    """

    def __init__(
        self,
        codec: Codec,
        data: ImageDataModule,
        extractor: FeatureExtractor | None,
        lpips: Backbone | None,
        split: str,
        number: int | None,
    ) -> None:
        self.codec, self.data, self.extractor, self.lpips, self.split = codec, data, extractor, lpips, split
        data.prepare_data()
        codec.shape(data.spec)
        if extractor is not None:
            extractor.setup()
        there = len(data.images(split))
        self.count = there if number is None else number
        require(1 < self.count <= there, f"{self.count} images are asked for, 2 to {there} can be scored of {split}")
        self.metric = Reconstruction(extractor, lpips=lpips)

    def run(self, trainer: Trainer, out: Path | None, shown: int) -> dict[str, Any]:
        """Return the results, with ``image``, the name of a file next to ``out`` that has ``shown`` images."""
        module = ReconstructionModule(self.codec, self.metric, shown)
        start, stop = rank_range(self.count, trainer.global_rank, trainer.world_size)
        self.data.extract(self.split, [Shard(0, start, stop)])
        trainer.predict(module, datamodule=self.data, return_predictions=False)
        content = content_of([{self._name(kind): value for kind, value in module.metrics.items()}], self._record())
        if shown and out is not None and trainer.is_global_zero:
            content["image"] = _show(module.pairs, shown, out)
        return content

    def _name(self, kind: str) -> str:
        extractor = None if self.extractor is None else self.extractor.name
        by = {"rfd": extractor, "lpips": self.lpips}.get(kind)
        return metric_name(kind, by or "pixels", self.count, self.split)

    def _record(self) -> dict[str, object]:
        found = self.data.images(self.split)
        spec = {"set": self.split, "identity": found.fingerprint, "images": len(found)}
        spec["resize"] = self.data.transform.describe(False)
        made_by = {"codec": describe(self.codec), "codec_identity": getattr(self.codec, "identity", None)}
        return Protocol("reconstruction").record(self.extractor or "pixels", spec, self.count) | made_by


def _show(pairs: list[tuple[Tensor, Tensor]], count: int, out: Path) -> str:
    """Write originals above what was made of them, and return the image's name."""
    original, made = (torch.cat(part)[:count] for part in zip(*pairs, strict=True))
    path = out.with_name(f"{out.stem}-images.png")
    save_png(labelled_grid([("originals", original), ("reconstructions", made)], count), path)
    return path.name
