"""FID, Inception score and their likes during training, on the averaged weights."""

from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from rcg_lightning.evaluation.extractors import FeatureExtractor
from rcg_lightning.evaluation.published_statistics import read_statistics
from rcg_lightning.evaluation.reference import reference_of
from rcg_lightning.evaluation.scores import CHEAP, Scorer
from rcg_lightning.stages.generator import Generator
from rcg_lightning.types import Batch, require, to_uint8


class Fidelity(Callback):
    """Scores one sample for each held-out picture, under that picture's condition, at every n-th validation.

    Conditions are observed, so no prior is needed: a generator of representations' pictures is judged by itself. The
    metrics' names say extractor, number of samples and reference.

    Args:
        extractor: features to compare in.
        count: at most so many samples.
        statistics: published reference statistics (.npz with mu and sigma); None measures the data's own pictures.
        every: n; the first validation of a training is not scored where n > 1, the n-th is.
    """

    def __init__(
        self, extractor: FeatureExtractor, count: int = 5000, statistics: Path | None = None, every: int = 1
    ) -> None:
        require(every > 0, f"Fidelity scores every n-th validation, with n at least 1, not {every}")
        self.extractor, self.count, self.statistics, self.every = extractor, count, statistics, every
        self._scorer: Scorer | None = None
        self._seen = 0
        self._validations = 0
        self._due = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        fits = isinstance(pl_module, Generator) and pl_module.codec.makes == "image"
        require(fits, "Fidelity scores what a generator of pictures makes: use it with one")
        self.extractor.setup()  # weights that are missing should stop the run before it has begun

    def state_dict(self) -> dict[str, int]:
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._validations = state_dict["validations"]

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._validations += 1
            self._due = self._validations % self.every == 0
        else:
            self._due = True  # asked for by hand, or to find mistakes early
        if not self._due:
            return
        if self._scorer is None:
            if self.statistics is not None:
                reference = read_statistics(self.statistics)
            else:
                folder = Path(trainer.default_root_dir) / f"reference-{trainer.global_rank}"
                reference = reference_of(trainer.datamodule, self.extractor, folder, pl_module.device)  # type: ignore
            self._scorer = Scorer(self.extractor, reference, CHEAP)
        self._scorer.to(pl_module.device).reset()
        self._seen = 0

    @torch.no_grad()
    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: Batch, *_: object
    ) -> None:
        room = self.count // trainer.world_size - self._seen
        if not self._due or room <= 0:
            return
        assert isinstance(pl_module, Generator)
        assert self._scorer is not None
        conditions = {name: rows[:room] for name, rows in pl_module.observed(batch).items()}
        index = batch["index"][:room]
        samples = pl_module.sample({"seed": index, **conditions})  # type: ignore[typeddict-item]
        self._scorer.update(to_uint8(samples), index)
        self._seen += len(index)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._due:
            return
        assert self._scorer is not None
        metrics = self._scorer.compute()
        count = int(self._scorer.statistics.counts.sum()) * trainer.world_size
        named = self._scorer.full_names(metrics, count)
        pl_module.log_dict({name: torch.tensor(value) for name, value in named.items()}, sync_dist=False)
