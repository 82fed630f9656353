"""The images of a data set, with their labels and stored columns, as batches for any stage."""

import logging
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader, Dataset, Sampler

from rcg_lightning.arguments import NonNegativeInt, PositiveInt
from rcg_lightning.config import ConfigMixin
from rcg_lightning.data import numpy_rng
from rcg_lightning.data.image_dataset import ImageDataset
from rcg_lightning.data.image_split import ImageSplit, Source, check_labels
from rcg_lightning.data.index_samplers import FixedBatches, Keys, StreamSampler, batches_of, ranges_of, rank_range
from rcg_lightning.data.shards import Shard
from rcg_lightning.data.store import Store
from rcg_lightning.data.stored_columns import available_keys, open_columns, reject_missing
from rcg_lightning.data.transforms import AsIs, Transform, Views
from rcg_lightning.errors import UserError
from rcg_lightning.types import Batch, DataSpec, require

log = logging.getLogger(__name__)


class ImageDataModule(ConfigMixin, LightningDataModule):
    """Batches of images with the keys that the stage ``needs``.

    Training is an endless stream that resumes where a checkpoint stopped. So a Trainer needs ``max_steps``, and
    validation needs a ``val_check_interval`` in steps. Evaluation images come once each, in order.

    Args:
        source: the data set.
        transform: resize, crop and flip; by default images stay unchanged.
        batch_size: examples of a batch in each process.
        workers: loader processes for each process, at most one for each core.
        stores: stores extracted from the training images; their columns can be needed.
        eval_stores: the same for the evaluation images.
        views: train on a fixed set of views of each image, as stored, instead of new random views.
        seed: of the order of the images and of their random transforms.
        validation_limit: evaluation images, chosen at random, on which a training is validated; None takes all.
    """

    def __init__(
        self,
        source: Source,
        transform: Transform | None = None,
        batch_size: PositiveInt = 128,
        workers: NonNegativeInt = 0,
        stores: list[Path] | None = None,
        eval_stores: list[Path] | None = None,
        views: Views | None = None,
        seed: int = 0,
        validation_limit: PositiveInt | None = None,
    ) -> None:
        super().__init__()
        self.source = source
        self.transform: Transform = AsIs() if transform is None else transform
        self.batch_size = batch_size
        self.workers = min(workers, os.cpu_count() or 1)
        self.store_paths = {"train": list(stores or []), "eval": list(eval_stores or [])}
        self.views = views
        self.seed = seed
        self.validation_limit = validation_limit
        require(
            views is None or not views.crops or self.transform.n_random > 0,
            f"views with random crops need a transform with random crops, not {type(self.transform).__name__}",
        )
        self._needs: frozenset[str] | None = None
        self._images: dict[str, ImageSplit] = {}
        self._stores: dict[str, dict[str, Store]] = {}
        self._extraction: tuple[str, list[tuple[int, int]]] | None = None
        self._restart = (0, 0)  # samples seen and batches counted at the start of the run

    # the data

    @property
    def needs(self) -> frozenset[str]:
        """Keys that batches must have: as set, else as the Trainer's module needs, else the image alone."""
        if self._needs is not None:
            return self._needs
        module = None if self.trainer is None else self.trainer.lightning_module
        return frozenset(getattr(module, "needs", {"image"}))

    @needs.setter
    def needs(self, keys: frozenset[str] | set[str]) -> None:
        self._needs = frozenset(keys)

    def images(self, split: str) -> ImageSplit:
        """Return the images of ``split``: "train", "eval", or "validation" where the source has such images."""
        if split not in self._images:
            splits = {"train": self.source.train, "eval": self.source.evaluation, "validation": self.source.validation}
            require(split in splits, f"the splits of a data set are train and eval, not {split!r}")
            found = splits[split]()
            if found is None:
                raise UserError(f"{type(self.source).__name__} has no validation images: set source.validation_size")
            if found.labels is not None:
                check_labels(found, found if split == "train" else self.images("train"))
            self._images[split] = found
        return self._images[split]

    @cached_property
    def has_validation(self) -> bool:
        """Whether there are images to make choices on, see ``Source``."""
        return self.source.validation() is not None

    def columns(self, split: str) -> dict[str, Store]:
        """Return the store of each column of ``split``, opened and checked by ``open_columns`` once."""
        if split not in self._stores:
            self._stores[split] = open_columns(self.store_paths[split], self.images(split).fingerprint, split)
        return self._stores[split]

    def store_identity(self, split: str) -> dict[str, str]:
        """Return the identity of a store made from ``split``; the maker adds one entry for each column."""
        return {"dataset": self.images(split).fingerprint, "split": split, "transform": self._describe_views(split)}

    def view_count(self, split: str) -> int:
        """Return the number of views of each image in an extraction of ``split``; evaluation images have one."""
        return self.views.count if self.views and split == "train" else 1

    @property
    def spec(self) -> DataSpec:
        """The data spec, from which a stage builds its networks."""
        images, columns = self.images("train"), self.columns("train")
        identities = {"dataset": images.fingerprint, "transform": self._describe_views("train")}
        for name, store in columns.items():
            if name in store.identity:
                identities[name] = str(store.identity[name])
        specs = {name: dict(store.columns[name]) for name, store in columns.items()}
        if "instance" in self._available("train"):
            specs["instance"] = dict(specs["representation"])
            identities["instance"] = identities["representation"]
        return DataSpec(
            image=self.transform.shape(images.channels, images.shape),
            classes=images.classes,
            columns=specs,
            identities=identities,
        )

    # Lightning's hooks

    def prepare_data(self) -> None:
        self.source.prepare()

    def setup(self, stage: str | None = None) -> None:
        if stage in (None, "fit"):
            self._restart = (0, 0)
            self._check_needs("train")
            self._check_eval_stores()  # wrong stores are found now, not at the first validation
        if stage in ("validate", "test"):
            self._check_needs("eval")
        if stage == "predict" and self._extraction is not None:
            self._check_needs(self._extraction[0])

    def train_dataloader(self) -> DataLoader[Batch]:
        rank, world = self._rank_and_world()
        size = len(self.images("train"))
        sampler = StreamSampler(size, self.batch_size, self.seed, rank, world, start=lambda: self.samples_seen)
        return self._loader("train", sampler)

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        images = self.images("eval")
        missing = self.needs - self._available("eval")
        fitting = self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        if not len(images) or (missing and fitting):
            reason = f"no evaluation {sorted(missing)}: give data.eval_stores" if missing else "no evaluation images"
            log.warning("no validation: there are %s", reason)
            return []
        self._check_needs("eval")
        limit = self.validation_limit if fitting else None
        if limit is None or limit >= len(images):
            own = rank_range(len(images), *self._rank_and_world())
            return self._loader("eval", FixedBatches([own], 1, self.batch_size))
        start, stop = rank_range(limit, *self._rank_and_world())
        # not in their order, in which folders come one after the other: a batch is a random choice too
        return self._loader("eval", batches_of(numpy_rng.permutation(len(images), 0)[start:stop], self.batch_size))

    def test_dataloader(self) -> DataLoader[Batch] | list[Any]:
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Return every view of the images that ``extract`` selects, else of this process's range of training."""
        split, ranges = self._extraction or (
            "train",
            [rank_range(len(self.images("train")), *self._rank_and_world())],
        )
        return self._loader(split, FixedBatches(ranges, self.view_count(split), self.batch_size))

    def extract(self, split: str, shards: list[Shard]) -> None:
        """Select the images of ``predict_dataloader``: the shards that this process has to write.

        No batch crosses the end of a shard, so batches and their results are the same for any number of processes.
        """
        self._extraction = (split, ranges_of(shards))
        # there may be more processes than missing shards
        self.allow_zero_length_dataloader_with_multiple_devices = True

    def deterministic_batches(
        self, split: str, needs: frozenset[str], index: np.ndarray | None = None, batch_size: int = 256
    ) -> Iterator[Batch]:
        """Yield the images of a split in their deterministic view, uint8; all of them in every process.

        Args:
            index: positions of the images, possibly repeated; by default all in order.
        """
        images = self.images(split)
        index = np.arange(len(images)) if index is None else np.asarray(index)
        dataset, keys = ImageDataset(images, self.transform, None, {}, needs, self.seed), batches_of(index, batch_size)
        return iter(DataLoader(dataset=dataset, sampler=keys, batch_size=None, num_workers=self.workers))

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int = 0) -> Batch:
        return as_floats(batch)

    # position in the stream

    @property
    def samples_seen(self) -> int:
        """The position in the stream: the number of images that all processes together have trained on."""
        samples, batches = self._restart
        return samples + (self._batches_done() - batches) * self.batch_size * self._rank_and_world()[1]

    def state_dict(self) -> dict[str, Any]:
        return {"samples": self.samples_seen, "batches": self._batches_done()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restart = (int(state_dict["samples"]), int(state_dict["batches"]))

    # private

    def _batches_done(self) -> int:
        if self.trainer is None:
            return self._restart[1]
        # "processed" counts a batch once its optimizer step is done, before any callback can save a checkpoint
        return vars(self.trainer.fit_loop.epoch_loop.batch_progress.total)["processed"]

    def _rank_and_world(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _describe_views(self, split: str) -> str:
        """Describe the fixed views of a split: those of a store made from it."""
        if self.views is not None and split == "train":
            return self.views.describe(self.transform)
        return self.transform.describe(False)

    def _available(self, split: str) -> frozenset[str]:
        return available_keys(self.images(split), self.columns(split), split)

    def _check_needs(self, split: str) -> None:
        """Raise a UserError where the images or stores of ``split`` do not provide a needed key."""
        reject_missing(self.needs - self._available(split), split, type(self.source).__name__)
        images = self.images(split)
        self.transform.shape(images.channels, images.shape)  # raises where the size is unknown
        used = {store.path: store for name, store in self.columns(split).items() if name in self.needs}
        if "image" in self.needs:  # image and stored row must be the same view
            for store in used.values():
                store.check(transform=self._describe_views(split))
            require(
                not used or split != "train" or self.views is not None or not self.transform.random,
                f"stored columns are of fixed views, but {type(self.transform).__name__} makes new random ones: set "
                "data.views as in the extraction, or a deterministic transform",
            )

    def _check_eval_stores(self) -> None:
        """Raise a UserError where a needed column has different identities in training and evaluation."""
        train = self.columns("train")
        needs = self.needs | ({"representation"} if "instance" in self.needs else set())
        for name, store in self.columns("eval").items():
            if name in needs & train.keys():
                store.check(**{name: train[name].identity.get(name)})

    def _dataset(self, split: str) -> Dataset[Batch]:
        """Return the data set whose items are batches."""
        views = self.views if split == "train" else None
        return ImageDataset(self.images(split), self.transform, views, self.columns(split), self.needs, self.seed)

    def _loader(self, split: str, sampler: Sampler[Keys] | list[Keys]) -> DataLoader[Batch]:
        # each key of the sampler is a whole batch, hence no batch_size; Lightning needs keyword arguments
        return DataLoader(
            dataset=self._dataset(split),
            sampler=sampler,
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
            prefetch_factor=4 if self.workers else None,
        )


def as_floats(batch: Batch) -> Batch:
    """Convert the uint8 images of a batch to float32 in [0, 1], on their device."""
    for key in ("image", "pair"):
        pixels = batch.get(key)
        if pixels is not None and pixels.dtype == torch.uint8:
            batch[key] = pixels.to(torch.float32) / 255
    return batch


def _unchanged(batch: Any) -> Any:
    return batch
