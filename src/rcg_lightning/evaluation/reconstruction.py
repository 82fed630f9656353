"""Reconstructions of a data set by a codec, scored on any number of processes."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from rcg_lightning.config import describe
from rcg_lightning.core.precision import frozen_precision
from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.data.index_samplers import rank_range
from rcg_lightning.data.shards import Shard
from rcg_lightning.evaluation.image_grid import labelled_grid, save_png
from rcg_lightning.evaluation.protocols import Protocol
from rcg_lightning.evaluation.results import content_of
from rcg_lightning.metrics.feature_extractors import FeatureExtractor
from rcg_lightning.metrics.metric_name import metric_name
from rcg_lightning.metrics.reconstruction import LPIPSBackbone, Reconstruction
from rcg_lightning.trainer import Trainer
from rcg_lightning.types import Batch, Codec, require, to_uint8


class ReconstructionModule(LightningModule):
    """Scores the reconstructions of a codec.

    Args:
        codec: encodes and decodes.
        metric: receives originals and reconstructions.
        shown: number of images to store in this process.
    """

    def __init__(self, codec: Codec, metric: Reconstruction, shown: int) -> None:
        super().__init__()
        self.codec, self.metric, self.shown = codec, metric, shown
        self.needs = frozenset({"image"})  # even where the codec would read a store
        self.pairs: list[tuple[Tensor, Tensor]] = []
        self.metrics: dict[str, float] = {}

    def predict_step(self, batch: Batch, batch_idx: int) -> None:
        reconstructed = to_uint8(self.codec.decode(self.codec.encode(batch)).float())
        original = to_uint8(batch["image"])  # type: ignore[reportTypedDictNotRequiredAccess]
        with frozen_precision("highest", reconstructed.device):
            self.metric.update(original, reconstructed)
        if sum(len(pair[0]) for pair in self.pairs) < self.shown:
            self.pairs.append((original[: self.shown].cpu(), reconstructed[: self.shown].cpu()))

    def on_predict_end(self) -> None:
        self.metrics = self.metric.compute()


class CodecEvaluation:
    """Evaluation of a codec: how well it reconstructs the images of one split.

    Args:
        codec: encodes and decodes.
        data: the images.
        extractor: makes the features for the Fréchet distance; None omits it.
        lpips: network of LPIPS; None omits it.
        split: ``train`` or ``eval``.
        number: score only the first ``number`` images; None scores all.

    Raises:
        UserError: the codec does not fit the data, weights are missing, or there are fewer images.
    """

    def __init__(
        self,
        codec: Codec,
        data: ImageDataModule,
        extractor: FeatureExtractor | None,
        lpips: LPIPSBackbone | None,
        split: str,
        number: int | None,
    ) -> None:
        self.codec, self.data, self.extractor, self.lpips, self.split = codec, data, extractor, lpips, split
        data.prepare_data()
        codec.shape(data.spec)
        if extractor is not None:
            extractor.setup()
        available = len(data.images(split))
        self.count = available if number is None else number
        require(1 < self.count <= available, f"{split} has {available} images: score 2 or more, not {self.count}")
        self.metric = Reconstruction(extractor, lpips=lpips)

    def run(self, trainer: Trainer, out: Path | None, shown: int) -> dict[str, Any]:
        """Return the results; ``image`` names a file next to ``out`` that shows ``shown`` images."""
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
    """Write an image with originals above their reconstructions, and return its file name."""
    original, reconstructed = (torch.cat(part)[:count] for part in zip(*pairs, strict=True))
    path = out.with_name(f"{out.stem}-images.png")
    save_png(labelled_grid([("originals", original), ("reconstructions", reconstructed)], count), path)
    return path.name
