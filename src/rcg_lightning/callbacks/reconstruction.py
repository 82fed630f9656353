"""Reconstruction metrics and a grid of reconstructions of a tokenizer, at every validation."""

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from rcg_lightning.arguments import Checked, PositiveInt
from rcg_lightning.callbacks.image_log import log_grid
from rcg_lightning.metrics.feature_extractors import FeatureExtractor
from rcg_lightning.metrics.metric_name import metric_name
from rcg_lightning.metrics.reconstruction import LPIPSBackbone, Reconstruction
from rcg_lightning.stages.tokenizer import TokenizerStage
from rcg_lightning.types import Batch, require, to_uint8


class Reconstructions(Checked, Callback):
    """Logs metrics of the reconstructions of all evaluation images, and a grid of some images and reconstructions.

    The names of the metrics give feature extractor and number of images: ``rfd/classifier_451``, ``ssim/pixels_451``.

    Args:
        extractor: features for the Fréchet distance between reconstructions and images; None leaves it out.
        lpips: network of LPIPS; None leaves it out.
        columns: images in the grid; below each is its reconstruction.
    """

    def __init__(
        self, extractor: FeatureExtractor | None = None, lpips: LPIPSBackbone | None = None, columns: PositiveInt = 16
    ) -> None:
        self.extractor, self.columns = extractor, columns
        self.lpips: LPIPSBackbone | None = lpips
        self._metric: Reconstruction | None = None
        self._grid_batch: Batch = {}
        self._seen = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        require(
            isinstance(pl_module, TokenizerStage), "Reconstructions evaluates a tokenizer: use it with TokenizerStage"
        )
        if self.extractor is not None:
            self.extractor.setup()  # missing weights stop the run before it begins

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._metric = Reconstruction(self.extractor, lpips=self.lpips).to(pl_module.device)
        self._seen = 0

    @torch.no_grad()
    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: Batch, batch_idx: int, *_: int
    ) -> None:
        assert isinstance(pl_module, TokenizerStage)
        assert self._metric is not None
        self._metric.update(to_uint8(batch["image"]), to_uint8(pl_module.reconstruct(batch["image"])))
        self._seen += len(batch["image"])
        if batch_idx == 0:
            self._grid_batch = {"image": batch["image"][: self.columns]}

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert self._metric is not None
        seen = torch.tensor(self._seen, device=pl_module.device)
        count = int(trainer.strategy.reduce(seen, reduce_op="sum"))
        extractors = {"lpips": self.lpips or "", "rfd": self.extractor.name if self.extractor is not None else ""}
        for kind, value in self._metric.compute().items():
            pl_module.log(metric_name(kind, extractors.get(kind, "pixels"), count), torch.tensor(value))
        self._metric = None

    @torch.no_grad()
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not (trainer.is_global_zero and self._grid_batch):
            return
        assert isinstance(pl_module, TokenizerStage)
        real = self._grid_batch["image"]
        images = torch.cat([real, pl_module.reconstruct(real).to(real.dtype)])
        log_grid(trainer, "reconstructions", images, len(real))
