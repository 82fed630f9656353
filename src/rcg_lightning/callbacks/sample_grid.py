"""Grids of samples, with the same seeds throughout training."""

import lightning.pytorch as pl
import torch

from rcg_lightning.arguments import PositiveInt
from rcg_lightning.callbacks.every_nth import EveryNth
from rcg_lightning.callbacks.image_log import log_grid
from rcg_lightning.stages.generator import Generator
from rcg_lightning.types import Batch, require


class SampleGrid(EveryNth):
    """Logs a grid of samples of the EMA weights at every n-th validation.

    Conditions (label, cluster, representation) are those of a batch of evaluation images, so no prior is needed. These
    images are shown in a second grid, once.

    Args:
        count: samples in the grid.
        columns: samples in a row.
        every: act at every n-th validation.
        files: also write each grid to ``grids/`` in the run's folder.
    """

    def __init__(
        self, count: PositiveInt = 64, columns: PositiveInt = 8, every: PositiveInt = 1, files: bool = False
    ) -> None:
        super().__init__(every)
        self.count, self.columns, self.files = count, columns, files
        self._batch: Batch = {}
        self._shown = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        fits = isinstance(pl_module, Generator) and pl_module.codec.makes == "image"
        require(fits, "SampleGrid shows samples of a generator of images: use it with such a stage")
        pl_module.codec.check_decoding()  # type: ignore[union-attr]

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: Batch, batch_idx: int, *_: int
    ) -> None:
        if batch_idx == 0:
            self._batch = batch

    @torch.no_grad()
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trial = trainer.fast_dev_run  # type: ignore[attr-defined]
        if trial or not (self.due and trainer.is_global_zero and self._batch):
            return
        assert isinstance(pl_module, Generator)
        real = self._batch["image"][: self.count]
        count = len(real)
        conditions = {name: values[:count] for name, values in pl_module.observed_conditions(self._batch).items()}
        seeds = torch.arange(count)
        tile = min(pl_module.tile, count)  # else the rest of it would be computed for nothing
        samples = pl_module.sample({"seed": seeds, **conditions}, tile=tile)  # type: ignore[typeddict-item]
        log_grid(trainer, "samples/generated", samples, self.columns, self.files)
        if conditions and not self._shown:
            self._shown = True
            log_grid(trainer, "samples/real_of_the_same_condition", real, self.columns, self.files)
