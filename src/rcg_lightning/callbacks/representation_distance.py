"""Fréchet distance of generated to real representations, which the RDM's loss does not measure."""

import lightning.pytorch as pl
import torch

from rcg_lightning.arguments import PositiveInt, SampleCount
from rcg_lightning.callbacks.every_nth import EveryNth
from rcg_lightning.errors import UserError
from rcg_lightning.metrics.feature_statistics import FeatureStatistics
from rcg_lightning.metrics.fid import Moments, fid
from rcg_lightning.metrics.representation_distance import RealRepresentations, full_names, representation_distances
from rcg_lightning.stages.generator import Generator
from rcg_lightning.stages.sampling import samples_by_tile
from rcg_lightning.types import Batch, require


class RepresentationDistance(EveryNth):
    """Logs the Fréchet distance of generated representations to those of training, and a reference value.

    The reference value (real vs. real) is the distance of an equal number of training representations, sampled with
    repetition: the distance of a perfect model. Both fall with the number of samples. With an online encoder, the
    reference is the evaluation set, and the reference value is the distance between its two halves. Names give encoder,
    number and reference, such as ``rep_fd/encoder_451_train`` and ``rep_fd_of_real/encoder_451_train``.

    Args:
        count: representations to generate; by default as many as there are evaluation images.
        max_count: largest number of real representations to read from a store.
        every: act at every n-th validation.
    """

    def __init__(
        self, count: SampleCount | None = None, max_count: SampleCount = 50_000, every: PositiveInt = 1
    ) -> None:
        super().__init__(every)
        self.count, self.max_count = count, max_count
        self._real: RealRepresentations | None = None
        self._evaluation: list[FeatureStatistics] = []  # all, and two halves

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        fits = isinstance(pl_module, Generator) and pl_module.codec.makes == "representation"
        require(fits, "RepresentationDistance evaluates a generator of representations: use it with an RDM")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_start(trainer, pl_module)
        self._evaluation = [_statistics(pl_module) for _ in range(3)]
        columns = trainer.datamodule.columns("train")  # type: ignore[attr-defined]
        if self._real is None and "representation" in columns:
            self._real = RealRepresentations(columns["representation"], max_count=self.max_count)

    @torch.no_grad()
    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: Batch, *_: object
    ) -> None:
        if not self.due:
            return
        assert isinstance(pl_module, Generator)
        representations, odd = pl_module.codec.encode(batch).float(), batch["index"] % 2 == 1
        for statistics, part in zip(self._evaluation, (representations, representations[~odd], representations[odd])):
            statistics.update(part)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Generate a share of the samples in each process; log the distance of all samples together."""
        if not self.due:
            return
        assert isinstance(pl_module, Generator)
        evaluation = _moments(self._evaluation[0])
        if evaluation is None or (evaluation.count or 0) < 4:  # a tiny evaluation set does not stop the training
            return
        generated = self._generated(trainer, pl_module, self.count or evaluation.count or 0)
        if self._real is not None:
            metrics = representation_distances(generated, self._real)
        else:
            even, odd = (_moments(statistics) for statistics in self._evaluation[1:])
            assert even is not None
            assert odd is not None
            metrics = {"rep_fd_eval": fid(generated, evaluation), "rep_fd_of_real_eval": fid(even, odd)}
        named = full_names(metrics, generated.count or 0)
        logged = {name: torch.tensor(value) for name, value in named.items()}
        pl_module.log_dict(logged, rank_zero_only=False, sync_dist=False)

    @torch.no_grad()
    def _generated(self, trainer: pl.Trainer, generator: Generator, count: int) -> Moments:
        statistics = _statistics(generator)
        for samples in samples_by_tile(generator, count, trainer.global_rank, trainer.world_size):
            statistics.update(samples.float())
        return statistics.compute().moments


def _statistics(generator: pl.LightningModule) -> FeatureStatistics:
    assert isinstance(generator, Generator)
    (dim,) = generator.shape
    return FeatureStatistics(dim).to(generator.device)


def _moments(statistics: FeatureStatistics) -> Moments | None:
    """Moments over all processes; None for fewer than two representations."""
    try:
        return statistics.compute().moments
    except UserError:
        return None
