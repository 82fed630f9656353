"""Stopping by the Parzen-window likelihood of validation images, as adversarial nets of 2014 were."""

import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from rcg_lightning.callbacks.every_nth import EveryNth
from rcg_lightning.metrics.parzen import ParzenImages, choose_bandwidth, log_likelihoods, pixels
from rcg_lightning.stages.generator import Generator
from rcg_lightning.types import Batch, require, to_uint8

log = logging.getLogger(__name__)


class ParzenStopping(EveryNth):
    """Keeps the weights under which validation images are the most probable, and stops when none better come.

    The best weights are ``best.ckpt`` in the run's folder. Bandwidth and likelihood are of one and the same images,
    so the metric is for choosing only; `rcg evaluate --parzen` makes those to be quoted. Logs ``parzen/validation`` and
    ``parzen/bandwidth``.

    Args:
        count: samples, of every class equally often.
        patience: stop after so many evaluations in a row that were no better; None never stops.
        every: at every n-th validation.
    """

    def __init__(self, count: int = 10_000, patience: int | None = None, every: int = 1) -> None:
        super().__init__(every)
        require(count > 1, f"ParzenStopping takes at least 2 samples, not {count}")
        self.count, self.patience = count, patience
        self._best, self._worse = float("-inf"), 0
        self._real: ParzenImages | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        fits = isinstance(pl_module, Generator) and pl_module.codec.makes == "image"
        require(fits, "ParzenStopping judges what a generator of images makes: use it with one")

    @torch.no_grad()
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # not at the epoch's end: a checkpoint is written, for which the validation has to be over
        if not self.due or trainer.state.fn != "fit":
            return
        assert isinstance(pl_module, Generator)
        likelihood, bandwidth = self._judge(trainer, pl_module)
        for logger in trainer.loggers:
            metrics = {"parzen/validation": likelihood, "parzen/bandwidth": bandwidth}
            logger.log_metrics(metrics, step=trainer.global_step)
        if likelihood > self._best:
            self._best, self._worse = likelihood, 0
            trainer.save_checkpoint(str(Path(trainer.default_root_dir) / "best.ckpt"), False)
            return
        self._worse += 1
        if self.patience is not None and self._worse >= self.patience:
            log.warning(f"stopped: {self._worse} times no better likelihood of validation images than {self._best:.1f}")
            trainer.should_stop = True

    def _judge(self, trainer: pl.Trainer, generator: Generator) -> tuple[float, float]:
        """Return the mean log-likelihood of validation images and its bandwidth; the same in every process."""
        self._real = self._real or ParzenImages(trainer.datamodule)  # type: ignore[attr-defined]
        seeds = torch.arange(self.count, device=generator.device)
        asked: Batch = {"seed": seeds}
        assert generator.spec is not None
        if generator.spec.classes is not None and "label" in generator.needs:
            asked["label"] = seeds % generator.spec.classes
        centres = pixels(to_uint8(generator.sample(asked)))
        points = pixels(self._real.validation.to(generator.device))
        bandwidth = choose_bandwidth(centres, points)
        return log_likelihoods(points, centres, [bandwidth]).mean().item(), bandwidth

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "best": self._best, "worse": self._worse}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._best, self._worse = state_dict["best"], state_dict["worse"]
