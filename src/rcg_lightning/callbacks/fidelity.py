"""FID, Inception score and other sample metrics during training, with the EMA weights."""

from pathlib import Path

import lightning.pytorch as pl
import torch

from rcg_lightning.arguments import PositiveInt, SampleCount
from rcg_lightning.callbacks.every_nth import EveryNth
from rcg_lightning.evaluation.reference import reference_of
from rcg_lightning.evaluation.reference_files import read_statistics
from rcg_lightning.evaluation.scorer import CHEAP, Scorer
from rcg_lightning.metrics.feature_extractors import FeatureExtractor
from rcg_lightning.stages.generator import Generator
from rcg_lightning.types import Batch, require, to_uint8


class Fidelity(EveryNth):
    """Evaluates one sample for each evaluation image, under that image's condition, at every n-th validation.

    Conditions are observed on the images, so no prior is needed: the metrics are those of the generator alone. Their
    names give extractor, number of samples and reference.

    Args:
        extractor: network whose features are compared.
        count: largest number of samples.
        statistics: published reference statistics (.npz with mu and sigma); None computes those of the data.
        every: act at every n-th validation.
        coverage: add precision, recall, density and coverage, since a generator that has collapsed can have a good
            distance but little coverage. They need all features in memory.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        count: SampleCount = 5000,
        statistics: Path | None = None,
        every: PositiveInt = 1,
        coverage: bool = False,
    ) -> None:
        super().__init__(every)
        self.extractor, self.count, self.statistics = extractor, count, statistics
        self.coverage = coverage
        self._scorer: Scorer | None = None
        self._seen = 0

    @property
    def state_key(self) -> str:
        return self._generate_state_key(every=self.every, count=self.count, extractor=self.extractor.name)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        fits = isinstance(pl_module, Generator) and pl_module.codec.makes == "image"
        require(fits, "Fidelity evaluates a generator of images: use it with such a stage")
        pl_module.codec.check_decoding()  # type: ignore[union-attr]
        self.extractor.setup()  # missing weights stop the run before it begins

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_start(trainer, pl_module)
        if not self.due:
            return
        if self._scorer is None:
            if self.statistics is not None:
                reference = read_statistics(self.statistics)
            else:
                folder = Path(trainer.default_root_dir) / f"reference-{trainer.global_rank}"
                reference = reference_of(trainer.datamodule, self.extractor, folder, pl_module.device)  # type: ignore
            groups = CHEAP | {"precision", "density"} if self.coverage else CHEAP
            self._scorer = Scorer(self.extractor, reference, groups)
        self._scorer.to(pl_module.device).reset()
        self._seen = 0

    @torch.no_grad()
    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: Batch, *_: object
    ) -> None:
        remaining = self.count // trainer.world_size - self._seen
        if not self.due or remaining <= 0:
            return
        assert isinstance(pl_module, Generator)
        assert self._scorer is not None
        conditions = {name: values[:remaining] for name, values in pl_module.observed_conditions(batch).items()}
        index = batch["index"][:remaining]
        samples = pl_module.sample({"seed": index, **conditions})  # type: ignore[typeddict-item]
        self._scorer.update(to_uint8(samples), index)
        self._seen += len(index)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.due:
            return
        assert self._scorer is not None
        metrics = self._scorer.compute()
        named = self._scorer.full_names(metrics, self._scorer.number)
        pl_module.log_dict({name: torch.tensor(value) for name, value in named.items()}, sync_dist=False)
