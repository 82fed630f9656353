"""Samples scored: as a generator makes them, on any number of processes, or as they lie in files."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from tqdm import tqdm

from rcg_lightning.cli.parsing import progress_bar
from rcg_lightning.conditions.class_label import LABEL_STREAM
from rcg_lightning.core.counter_rng import SeededNoise
from rcg_lightning.core.guidance import Guidance
from rcg_lightning.core.samplers import Sampler
from rcg_lightning.data.seed_data_module import SeedDataModule
from rcg_lightning.errors import UserError
from rcg_lightning.evaluation.protocols import Labels, Protocol
from rcg_lightning.evaluation.reference import BATCH, batches
from rcg_lightning.evaluation.sample_readers import Samples
from rcg_lightning.evaluation.scorer import Scorer
from rcg_lightning.metrics.feature_extractors import FeatureExtractor
from rcg_lightning.metrics.representation_distance import RepresentationScorer
from rcg_lightning.sampling.loading import Loaded, chosen_labels
from rcg_lightning.stages.generator import Generator
from rcg_lightning.stages.sampling import SamplingModule
from rcg_lightning.stages.stage_folder import holds_stage
from rcg_lightning.trainer import Trainer
from rcg_lightning.types import Batch, require

NUMBER = 5000  # samples made where neither protocol nor user says
AnyScorer = Scorer | RepresentationScorer


class ScoredSampling(SamplingModule):
    """Scores samples as they are made; none touches the disk, and any number of processes take part.

    Args:
        generator: what makes them, with its settings of sampling; None takes the generator's own.
        scorers: one for each block of seeds.
        number: samples of a block.
        finish: from what the generator makes to what is scored, such as uint8 images.
    """

    def __init__(
        self,
        generator: Generator,
        scorers: Sequence[AnyScorer],
        number: int,
        finish: Callable[[Tensor], Tensor],
        guidance: Guidance | None = None,
        sampler: Sampler | None = None,
        ema_name: str | None = None,
    ) -> None:
        super().__init__()
        self.generator, self.guidance, self.sampler, self.ema_name = generator, guidance, sampler, ema_name
        self.scorers, self.number, self.finish = torch.nn.ModuleList(scorers), number, finish
        # samples, their positions, and the classes that were asked for
        self.waiting: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in scorers]
        self.metrics: list[dict[str, float]] = []
        self.kept: list[Tensor] = []

    def predict_step(self, batch: Batch, batch_idx: int) -> None:
        made = self.generator.sample(batch, self.guidance, self.sampler, self.ema_name)
        made = self.finish(made.float())
        block = batch["index"] // self.number
        label = batch.get("label", torch.full_like(block, -1))
        for i in block.unique().tolist():
            mine = block == i
            self.waiting[i].append((made[mine], batch["index"][mine] % self.number, label[mine]))
            self._score(i, BATCH)

    def _score(self, i: int, least: int) -> None:
        """Score what waits of a block, in the batches that files are scored in: metrics agree to the last digit."""
        while sum(len(samples) for samples, *_ in self.waiting[i]) >= least:
            samples, positions, labels = (torch.cat(parts) for parts in zip(*self.waiting[i], strict=True))
            scorer = self.scorers[i]
            classes = scorer.extractor.classes if isinstance(scorer, Scorer) else None
            assert self.generator.spec is not None
            same = classes is not None and classes == self.generator.spec.classes  # Inception's are others
            with torch.autocast(samples.device.type, enabled=False):  # metrics are of float32 at least
                extra = {"label": labels[:BATCH]} if same else {}
                scorer.update(samples[:BATCH], positions[:BATCH], **extra)  # type: ignore[operator]
            rest = samples[BATCH:], positions[BATCH:], labels[BATCH:]
            self.waiting[i] = [rest] if len(rest[0]) else []

    def on_predict_end(self) -> None:
        for i in range(len(self.scorers)):
            self._score(i, 1)
        self.metrics = [scorer.compute() for scorer in self.scorers]  # type: ignore[operator]
        self.kept = _kept(self.scorers)


class Watched(Callback):
    """A progress bar that appears where predicting takes more than a few seconds."""

    def __init__(self, what: str = "sampling") -> None:
        self.what = what
        self._bar: tqdm[Any] | None = None

    def on_predict_start(self, trainer: pl.Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            total = sum(int(batches) for batches in trainer.num_predict_batches)
            self._bar = tqdm(desc=self.what, total=total, delay=3, leave=False)

    def on_predict_batch_end(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.update()

    def on_predict_end(self, trainer: pl.Trainer, pl_module: LightningModule) -> None:
        if self._bar is not None:
            self._bar.close()


@dataclass(frozen=True)
class Scored:
    """What came of samples.

    Attributes:
        blocks: metrics of each block of seeds, by short names.
        number: samples of a block.
        format: as in a protocol's record.
        speaks: true in one of the processes that made them.
        kept: samples of each block, where scorers keep them, uint8 (n, C, H, W) in their order.
    """

    blocks: list[dict[str, float]]
    number: int
    format: str
    speaks: bool = True
    kept: list[Tensor] = field(default_factory=list)


def score_made(module: ScoredSampling, seeds: SeedDataModule, trainer: Trainer) -> Scored:
    """Score what a generator makes of ``seeds``."""
    trainer.predict(module, datamodule=seeds, return_predictions=False)
    return Scored(module.metrics, module.number, "memory", trainer.is_global_zero, module.kept)


def score_read(found: Samples, scorers: Sequence[AnyScorer], device: torch.device) -> Scored:
    """Score samples that lie in files, in as many equal parts as there are scorers."""
    count = len(scorers)
    require(found.count % count == 0, f"{found.count} samples make no {count} equal parts: choose another --seeds")
    size, metrics = found.count // count, []
    for i, scorer in enumerate(scorers):
        part = found.part(i * size, (i + 1) * size)
        scorer.to(device)
        for batch in batches(progress_bar(part, "scoring", -(-size // BATCH))):
            scorer.update(batch.to(device))
        metrics.append(scorer.compute())
    return Scored(metrics, size, found.format, kept=_kept(scorers))


def asked_seeds(loaded: Loaded, first: int, total: int, labels: Labels, batch_size: int) -> SeedDataModule:
    """Return ``total`` seeds from ``first`` on, with labels where the protocol chooses them."""
    numbers = torch.arange(first, first + total)
    carried = chosen_labels(loaded, None, labels != "generated", total)
    if labels == "random" and loaded.labels is not None:
        carried["label"] = SeededNoise(numbers, LABEL_STREAM).integers(0, loaded.labels)
    return SeedDataModule(numbers.tolist(), batch_size, carried)


def finisher(protocol: Protocol, generator: Generator) -> Callable[[Tensor], Tensor]:
    """Return what makes of a generator's samples what is scored: images are quantised, representations stay."""
    return protocol.quantise if generator.codec.makes == "image" else torch.Tensor.contiguous


def loaded_features(extractor: FeatureExtractor | None, protocol: Protocol) -> FeatureExtractor:
    """Return the extractor that is given or the protocol's, loaded, for missing weights should stop work at once."""
    chosen = extractor or protocol.extractor
    if chosen is None:
        raise UserError("give --extractor, what makes the features to compare in, or a --protocol that has one")
    chosen.setup()
    return chosen


def image_of(loaded: Loaded) -> tuple[int, int, int]:
    """Return (C, H, W) of the images that a generator makes."""
    assert loaded.generator.spec is not None
    return loaded.generator.spec.image


def is_generator(path: Path) -> bool:
    """Whether samples are to be made by what lies at ``path``: a checkpoint, a stage's folder or a bundle."""
    return holds_stage(path) or path.suffix in (".pt", ".pth")


def _kept(scorers: Any) -> list[Tensor]:
    return [scorer.kept.compute() for scorer in scorers if scorer.kept is not None]
