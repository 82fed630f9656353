"""Early stopping by the Parzen-window likelihood of validation images, as for the adversarial nets of 2014."""

import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from rcg_lightning.arguments import PositiveInt, SampleCount
from rcg_lightning.callbacks.every_nth import EveryNth
from rcg_lightning.metrics.parzen import ParzenImages, choose_bandwidth, log_likelihoods, pixels
from rcg_lightning.stages.generator import Generator
from rcg_lightning.types import Batch, require, to_uint8

log = logging.getLogger(__name__)


class ParzenStopping(EveryNth):
    """Stores the weights with the highest likelihood of validation images, and stops when it no longer improves.

    The best weights are ``best.ckpt`` in the run's folder. Bandwidth and likelihood are computed on the same images,
    so use this metric for model selection only, and report that of `rcg evaluate --parzen`. Logs ``parzen/validation``
    and ``parzen/bandwidth``.

    Args:
        count: number of samples, equal for every class.
        patience: number of evaluations in a row without improvement before training stops; None never stops.
        every: act at every n-th validation.
    """

    def __init__(
        self, count: SampleCount = 10_000, patience: PositiveInt | None = None, every: PositiveInt = 1
    ) -> None:
        super().__init__(every)
        self.count, self.patience = count, patience
        self._best, self._not_better = float("-inf"), 0
        self._real: ParzenImages | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        fits = isinstance(pl_module, Generator) and pl_module.codec.makes == "image"
        require(fits, "ParzenStopping evaluates a generator of images: use it with such a stage")

    @torch.no_grad()
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # not in on_validation_epoch_end: validation has to be over before a checkpoint is written
        if not self.due or trainer.state.fn != "fit":
            return
        assert isinstance(pl_module, Generator)
        likelihood, bandwidth = self._likelihood(trainer, pl_module)
        for logger in trainer.loggers:
            metrics = {"parzen/validation": likelihood, "parzen/bandwidth": bandwidth}
            logger.log_metrics(metrics, step=trainer.global_step)
        if likelihood > self._best:
            self._best, self._not_better = likelihood, 0
            trainer.save_checkpoint(str(Path(trainer.default_root_dir) / "best.ckpt"), False)
            return
        self._not_better += 1
        if self.patience is not None and self._not_better >= self.patience:
            best = f"the likelihood of validation images stayed at or below {self._best:.1f}"
            log.warning(f"stopped: {best} in {self._not_better} evaluations")
            trainer.should_stop = True

    def _likelihood(self, trainer: pl.Trainer, generator: Generator) -> tuple[float, float]:
        """Return the mean log-likelihood of validation images and the bandwidth; the same in every process."""
        self._real = self._real or ParzenImages(trainer.datamodule)  # type: ignore[attr-defined]
        seeds = torch.arange(self.count)
        batch: Batch = {"seed": seeds}
        assert generator.spec is not None
        if generator.spec.classes is not None and "label" in generator.needs:
            batch["label"] = seeds % generator.spec.classes
        centres = pixels(to_uint8(generator.sample(batch)))
        points = pixels(self._real.validation.to(generator.device))
        bandwidth = choose_bandwidth(centres, points)
        return log_likelihoods(points, centres, [bandwidth]).mean().item(), bandwidth

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "best": self._best, "not_better": self._not_better}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._best, self._not_better = state_dict["best"], state_dict["not_better"]
