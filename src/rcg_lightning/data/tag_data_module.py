"""Batches of pairs: an image and one of its tags."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rcg_lightning.arguments import NonNegativeInt, PositiveInt
from rcg_lightning.artifacts import fingerprint
from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.data.index_samplers import FixedBatches, Keys, StreamSampler, rank_range
from rcg_lightning.data.tagged_datasets import TaggedSource, TagLists
from rcg_lightning.data.transforms import Transform, Views
from rcg_lightning.errors import UserError
from rcg_lightning.pretrained.word_vectors import read_word_vectors
from rcg_lightning.types import Batch, DataSpec, require

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pairs:
    """Every tag of every image of a split.

    Attributes:
        index: (P,) int64, ascending, positions of the images.
        tag: (P,) int64, positions in a vocabulary.
        outside: number of tags that are not in the vocabulary, and so in no pair.
    """

    index: np.ndarray
    tag: np.ndarray
    outside: int

    def __len__(self) -> int:
        return len(self.index)

    def matrix(self, images: int, words: int) -> Tensor:
        """Return (images, words) bool: True where an image has the word of the vocabulary as a tag."""
        has = torch.zeros(images, words, dtype=torch.bool)
        has[torch.from_numpy(self.index), torch.from_numpy(self.tag)] = True
        return has


def pairs_of(tags: TagLists, vocabulary: Sequence[str]) -> Pairs:
    """Return the pairs of each image and those of its tags that are in ``vocabulary``."""
    position = {word: number for number, word in enumerate(vocabulary)}
    found = [(i, position[tag]) for i, image_tags in enumerate(tags) for tag in image_tags if tag in position]
    table = np.asarray(found, np.int64).reshape(-1, 2)
    outside = sum(map(len, tags)) - len(found)
    return Pairs(np.ascontiguousarray(table[:, 0]), np.ascontiguousarray(table[:, 1]), outside)


class TagPairDataset(Dataset[Batch]):
    """A data set whose items are batches of pairs: those of ``images``, with ``tag``. Keys are positions of pairs."""

    def __init__(self, images: Dataset[Batch], pairs: Pairs) -> None:
        self.images, self.pairs = images, pairs

    def __getitem__(self, keys: Keys) -> Batch:
        batch: Batch = self.images[replace(keys, index=self.pairs.index[keys.index])]
        batch["tag"] = torch.from_numpy(self.pairs.tag[keys.index])
        return batch


class TagDataModule(ImageDataModule):
    """Images with tags. Where a stage needs ``tag``, an example is a pair: an image and one of its tags.

    So an image occurs as often as it has tags (Mirza & Osindero 2014), in training and in validation. Fingerprints
    and stores are the same as without tags.

    The vocabulary holds the tags of the training images, the most frequent first. Tags outside it are left out, and
    with them the images that have no other tag; a warning gives their numbers.

    Args:
        source: images with tags.
        min_count: a word of the vocabulary is a tag of at least ``min_count`` training images.
        vectors: word2vec file; a word without a vector there is not in the vocabulary.
        untagged: what to do with images without a tag in the vocabulary: ``skip`` them, or ``stop`` at the first.
        transform, batch_size, workers, stores, eval_stores, views, seed: see ``ImageDataModule``.
    """

    source: TaggedSource  # type: ignore[assignment]

    def __init__(
        self,
        source: TaggedSource,
        min_count: PositiveInt = 1,
        vectors: Path | None = None,
        untagged: Literal["skip", "stop"] = "skip",
        transform: Transform | None = None,
        batch_size: PositiveInt = 100,
        workers: NonNegativeInt = 0,
        stores: list[Path] | None = None,
        eval_stores: list[Path] | None = None,
        views: Views | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(source, transform, batch_size, workers, stores, eval_stores, views, seed)
        self.min_count, self.vectors, self.untagged = min_count, vectors, untagged
        self._tags: dict[str, TagLists] = {}
        self._vocabulary: list[str] | None = None
        self._pairs: dict[str, Pairs] = {}

    # the data

    def tags(self, split: str) -> TagLists:
        """Return all tags of each image of ``split``, in the vocabulary or not."""
        if split not in self._tags:
            self._tags[split] = self.source.tags(self.images(split))
        return self._tags[split]

    @property
    def vocabulary(self) -> list[str]:
        """The words that a tag can be, the most frequent first, equally frequent words in alphabetical order."""
        if self._vocabulary is None:
            counts = Counter(tag for tags in self.tags("train") for tag in tags)
            require(bool(counts), "no training image has a tag: check where the source reads them")
            frequent = [word for word, count in counts.items() if count >= self.min_count]
            most = max(counts.values())
            few = f"no word occurs {self.min_count} times, the most frequent one {most} times: lower min_count"
            require(bool(frequent), few)
            if self.vectors is not None:
                known = set(read_word_vectors(self.vectors, frequent).words)
                frequent = [word for word in frequent if word in known]
                require(bool(frequent), f"none of the tags has a vector in {self.vectors}: is it of another language?")
            self._vocabulary = sorted(frequent, key=lambda word: (-counts[word], word))
        return self._vocabulary

    def pairs(self, split: str) -> Pairs:
        """Return the pairs of ``split``; the first time, warn of what is left out.

        Raises:
            UserError: an image has no tag in the vocabulary and ``untagged`` is ``stop``, or no training image has one.
        """
        if split not in self._pairs:
            found = pairs_of(self.tags(split), self.vocabulary)
            self._report_omissions(split, found)
            self._pairs[split] = found
        return self._pairs[split]

    def _report_omissions(self, split: str, pairs: Pairs) -> None:
        images = self.images(split)
        untagged = np.setdiff1d(np.arange(len(images)), pairs.index)
        if len(untagged) and self.untagged == "stop":
            name = images.name(int(untagged[0]))
            raise UserError(f"{name} has no tag in the vocabulary: tag or remove it, or set untagged to skip")
        enough = len(pairs) or split != "train"
        require(bool(enough), f"none of {len(images)} training images has a tag in the vocabulary: lower min_count")
        if pairs.outside or len(untagged):
            counts = (pairs.outside, pairs.outside + len(pairs), len(self.vocabulary), len(untagged), len(images))
            log.warning(
                "%s: %d of %d tags are outside the vocabulary of %d words and left out, and with them %d of %d "
                "images, which have no other tag",
                *(split, *counts),
            )

    @property
    def spec(self) -> DataSpec:
        spec, words = super().spec, self.vocabulary
        tag = {"shape": [], "count": len(words), "words": words}
        identities = {**spec.identities, "tag": fingerprint(words)}
        return replace(spec, columns={**spec.columns, "tag": tag}, identities=identities)

    def conditions(self, split: str, needs: frozenset[str]) -> Iterator[Batch]:
        """Yield the images of ``split`` once each, in order, without randomness, with their stored columns.

        Args:
            needs: keys of the batches, in addition to ``index`` and ``view``.

        Raises:
            UserError: neither the images nor the stores provide one of the keys.
        """
        before, self._needs = self._needs, needs - {"tag"}
        try:
            self._check_needs(split)
            return iter(self._loader(split, FixedBatches([(0, len(self.images(split)))], 1, self.batch_size)))
        finally:
            self._needs = before

    # loaders

    def train_dataloader(self) -> DataLoader[Batch]:
        if "tag" not in self.needs:
            return super().train_dataloader()
        rank, world = self._rank_and_world()
        size = len(self.pairs("train"))
        sampler = StreamSampler(size, self.batch_size, self.seed, rank, world, start=lambda: self.samples_seen)
        return self._loader("train", sampler)

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        found = super().val_dataloader()
        if isinstance(found, list) or "tag" not in self.needs:
            return found
        count = len(self.pairs("eval"))
        batches = FixedBatches([rank_range(count, *self._rank_and_world())], 1, self.batch_size)
        return self._loader("eval", batches) if count else []

    def _dataset(self, split: str) -> Dataset[Batch]:
        images = super()._dataset(split)
        return TagPairDataset(images, self.pairs(split)) if "tag" in self.needs else images

    def _available(self, split: str) -> frozenset[str]:
        return super()._available(split) | {"tag"}

    def _check_needs(self, split: str) -> None:
        super()._check_needs(split)
        if "tag" in self.needs:
            both = "tags and instances cannot be used together: the neighbour's image is not the image of the pair"
            require("instance" not in self.needs, f"{both}; choose a condition without instances")
            self.pairs(split)
