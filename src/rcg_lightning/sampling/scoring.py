"""Score samples: while a generator makes them, on any number of processes, or from files."""

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

from rcg_lightning.conditions.class_label import LABEL_STREAM
from rcg_lightning.core.counter_rng import SeededNoise
from rcg_lightning.core.guidance import Guidance
from rcg_lightning.core.precision import FrozenPrecision, frozen_precision
from rcg_lightning.core.samplers import Sampler
from rcg_lightning.core.transfers import from_pinned_memory, to_device
from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.data.seed_data_module import SeedDataModule
from rcg_lightning.errors import UserError
from rcg_lightning.evaluation.protocols import Labels, Protocol, bind_representations
from rcg_lightning.evaluation.reference import BATCH, batches
from rcg_lightning.evaluation.sample_readers import (
    AS_IS,
    Samples,
    holds_representations,
    open_representations,
    open_samples,
    samples_folder,
)
from rcg_lightning.evaluation.scorer import Scorer
from rcg_lightning.metrics.feature_extractors import FeatureExtractor
from rcg_lightning.metrics.representation_distance import RepresentationScorer
from rcg_lightning.sampling.loading import Loaded, chosen_labels, load, same_encoder
from rcg_lightning.sampling.run_parts import is_run
from rcg_lightning.stages.generator import Generator
from rcg_lightning.stages.sampling import SamplingModule
from rcg_lightning.stages.stage_folder import holds_stage
from rcg_lightning.trainer import Trainer
from rcg_lightning.types import Batch, require

NUMBER = 5000  # default number of samples
AnyScorer = Scorer | RepresentationScorer


class ScoredSampling(SamplingModule):
    """Scores samples as they are generated, without writing them, on any number of processes.

    Args:
        generator: makes the samples by ``guidance``, ``sampler`` and ``ema_name``; None takes its own.
        scorers: one per block of seeds.
        number: samples per block.
        finish: converts the generator's output to the scored form, such as uint8 images.
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
        # samples, their positions and the requested classes
        self.waiting: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in scorers]
        self.metrics: list[dict[str, float]] = []
        self.images: list[Tensor] = []

    def predict_step(self, batch: Batch, batch_idx: int) -> None:
        samples = self.finish(self.samples(batch).float())
        block = batch["index"] // self.number
        values = batch["index"] % self.number, batch.get("label", torch.full_like(block, -1))
        for i in block.unique().tolist():
            rows = (block == i).nonzero()[:, 0]
            positions, labels = (to_device(value[rows], samples.device) for value in values)
            self.waiting[i].append((samples[to_device(rows, samples.device)], positions, labels))
            self._score(i, BATCH)

    def _score(self, i: int, minimum: int) -> None:
        """Score a block's waiting samples, batched as files are, so that metrics agree to the last digit."""
        while sum(len(samples) for samples, *_ in self.waiting[i]) >= minimum:
            samples, positions, labels = (torch.cat(parts) for parts in zip(*self.waiting[i], strict=True))
            scorer = self.scorers[i]
            classes = scorer.extractor.classes if isinstance(scorer, Scorer) else None
            assert self.generator.spec is not None
            same = classes is not None and classes == self.generator.spec.classes  # Inception's classes differ
            with frozen_precision("highest", samples.device):  # metrics are of float32 at minimum
                extra = {"label": labels[:BATCH]} if same else {}
                scorer.update(samples[:BATCH], positions[:BATCH], **extra)  # type: ignore[operator]
            rest = samples[BATCH:], positions[BATCH:], labels[BATCH:]
            self.waiting[i] = [rest] if len(rest[0]) else []

    def on_predict_end(self) -> None:
        super().on_predict_end()
        for i in range(len(self.scorers)):
            self._score(i, 1)
        self.metrics = [scorer.compute() for scorer in self.scorers]  # type: ignore[operator]
        self.images = _stored(self.scorers)


class SamplingProgress(Callback):
    """Progress bar, shown if prediction takes more than a few seconds."""

    def __init__(self, title: str = "sampling") -> None:
        self.title = title
        self._bar: tqdm[Any] | None = None

    def on_predict_start(self, trainer: pl.Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            total = sum(int(batches) for batches in trainer.num_predict_batches)
            self._bar = tqdm(desc=self.title, total=total, delay=3, leave=False)

    def on_predict_batch_end(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.update()

    def on_predict_end(self, trainer: pl.Trainer, pl_module: LightningModule) -> None:
        if self._bar is not None:
            self._bar.close()


@dataclass(frozen=True)
class SampleSource:
    """Source of samples: either a generator or files; the other is None."""

    loaded: Loaded | None
    files: Samples | None

    @classmethod
    def open(
        cls,
        path: Path,
        prior: Path | None,
        autoencoder: Path | None,
        instances: Path | None,
        resize: int | None = None,
        autoencoder_precision: FrozenPrecision | None = None,
    ) -> "SampleSource":
        """Load the generator at ``path`` (a checkpoint, a stage folder, a bundle or a run), or open the files there.

        Only images in files are resized, see ``open_samples``.
        """
        images_only = "--resize is for images in files: a generator's samples and representations have their size"
        if holds_stage(path) or path.suffix in (".pt", ".pth") or is_run(path):
            require(resize is None, images_only)
            return cls(load(path, prior, False, autoencoder, instances, autoencoder_precision), None)
        path = samples_folder(path)
        if holds_representations(path):
            require(resize is None, images_only)
            return cls(None, open_representations(path))
        return cls(None, open_samples(path, resize=resize))

    @property
    def of_representations(self) -> bool:
        """Whether the samples are representations, not images."""
        if self.loaded is not None:
            return self.loaded.generator.codec.makes == "representation"
        return self.files is not None and len(self.files.shape) == 1

    @property
    def image(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of the images."""
        if self.loaded is not None:
            return image_of(self.loaded)
        assert self.files is not None
        channels, height, width = self.files.shape
        return channels, height, width


@dataclass(frozen=True)
class Scored:
    """Results of scored samples.

    Attributes:
        blocks: metrics of each block of seeds, by short name.
        number: samples per block.
        format: as in a protocol's record.
        reports: whether this is the process that reports.
        images: samples of each block in order, uint8 (n, C, H, W), if the scorers store them.
        resize: of the samples, as in a protocol's record.
    """

    blocks: list[dict[str, float]]
    number: int
    format: str
    reports: bool = True
    images: list[Tensor] = field(default_factory=list)
    resize: str = AS_IS


def score_generated(module: ScoredSampling, seeds: SeedDataModule, trainer: Trainer) -> Scored:
    """Score a generator's samples of ``seeds``."""
    try:
        trainer.predict(module, datamodule=seeds, return_predictions=False)
    except BaseException as error:
        error.add_note("samples that are only scored are not stored")
        raise
    return Scored(module.metrics, module.number, "memory", trainer.is_global_zero, module.images)


def score_files(found: Samples, scorers: Sequence[AnyScorer], device: torch.device) -> Scored:
    """Score samples from files, in one equal part per scorer."""
    count = len(scorers)
    require(
        found.count % count == 0,
        f"{found.count} samples cannot be cut into {count} equal parts: choose another --seeds",
    )
    size, metrics = found.count // count, []
    for i, scorer in enumerate(scorers):
        part = found.part(i * size, (i + 1) * size)
        scorer.to(device)
        for batch in batches(tqdm(part, "scoring", -(-size // BATCH), delay=3, leave=False)):
            scorer.update(from_pinned_memory(batch, torch.device(device)))
        metrics.append(scorer.compute())
    return Scored(metrics, size, found.format, images=_stored(scorers), resize=found.resize)


def seeds_to_score(loaded: Loaded, first: int, total: int, labels: Labels, batch_size: int) -> SeedDataModule:
    """Return seeds first, …, first + total - 1, with labels where the protocol chooses them."""
    numbers = torch.arange(first, first + total)
    carried = chosen_labels(loaded, None, labels != "generated", total)
    if labels == "random" and loaded.labels is not None:
        carried["label"] = SeededNoise(numbers, LABEL_STREAM).integers(0, loaded.labels)
    return SeedDataModule(numbers.tolist(), batch_size, carried, loaded.generator.tile)


def finisher(protocol: Protocol, generator: Generator) -> Callable[[Tensor], Tensor]:
    """Return the function from a generator's output to the scored form: images are quantised, representations stay."""
    return protocol.quantise if generator.codec.makes == "image" else torch.Tensor.contiguous


def loaded_features(extractor: FeatureExtractor | None, protocol: Protocol) -> FeatureExtractor:
    """Return the given extractor or the protocol's, loaded: missing weights should stop the work at once."""
    chosen = extractor or protocol.extractor
    if chosen is None:
        raise UserError("give --extractor, which makes the features to compare, or a --protocol that has one")
    chosen.setup()
    return chosen


def image_of(loaded: Loaded) -> tuple[int, int, int]:
    """Return (C, H, W) of the images that a generator makes."""
    assert loaded.generator.spec is not None
    return loaded.generator.spec.image


def representation_scorers(
    source: SampleSource, data: ImageDataModule | None, count: int
) -> tuple[list[AnyScorer], str, dict[str, Any]]:
    """Return ``count`` scorers, the encoder's identity and the description for the record, all of representations."""
    if data is None:
        raise UserError("these samples are representations: give the real ones, as --data with --data.stores")
    real, spec = bind_representations(data)
    if source.loaded is not None:
        same_encoder(source.loaded.generator, real.identity, "--data.stores")
    return [RepresentationScorer(real) for _ in range(count)], str(real.identity), spec


def _stored(scorers: Any) -> list[Tensor]:
    return [scorer.images.compute() for scorer in scorers if scorer.images is not None]
