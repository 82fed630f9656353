"""Pairs of an image and one of its tags, as batches."""

import hashlib
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

from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.data.index_samplers import FixedBatches, Keys, StreamSampler, share
from rcg_lightning.data.tagged_datasets import Lists, TaggedSource
from rcg_lightning.data.transforms import Transform, Views
from rcg_lightning.errors import UserError
from rcg_lightning.pretrained.word_vectors import read_word_vectors
from rcg_lightning.types import Batch, DataSpec, require

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pairs:
    """Every tag of every image of a split.

    Attributes:
        index: (P,) int64, ascending: the image's position.
        tag: (P,) int64, the word's place in a vocabulary.
        outside: how many tags are in no vocabulary, and so in no pair.
    """

    index: np.ndarray
    tag: np.ndarray
    outside: int

    def __len__(self) -> int:
        return len(self.index)

    def of(self, images: int, words: int) -> Tensor:
        """Return (images, words) bool: which words each image has."""
        has = torch.zeros(images, words, dtype=torch.bool)
        has[torch.from_numpy(self.index), torch.from_numpy(self.tag)] = True
        return has


def pairs_of(lists: Lists, vocabulary: Sequence[str]) -> Pairs:
    """Return the pairs of the words of each image that ``vocabulary`` has."""
    place = {word: number for number, word in enumerate(vocabulary)}
    found = [(i, place[word]) for i, words in enumerate(lists) for word in words if word in place]
    table = np.asarray(found, np.int64).reshape(-1, 2)
    outside = sum(map(len, lists)) - len(found)
    return Pairs(np.ascontiguousarray(table[:, 0]), np.ascontiguousarray(table[:, 1]), outside)


class TagPairDataset(Dataset[Batch]):
    """Batches of pairs: ``rows`` of their images, and ``tag``. A key's index is a position among the pairs."""

    def __init__(self, rows: Dataset[Batch], pairs: Pairs) -> None:
        self.rows, self.pairs = rows, pairs

    def __getitem__(self, keys: Keys) -> Batch:
        batch: Batch = self.rows[replace(keys, index=self.pairs.index[keys.index])]
        batch["tag"] = torch.from_numpy(self.pairs.tag[keys.index])
        return batch


class TagDataModule(ImageDataModule):
    """Images with tags. Where a stage needs ``tag``, an example is an image with one of its tags.

    An image comes as often in training as it has tags (Mirza & Osindero 2014), and so it does in validation. Its
    images, stores and whatever else is made of them are those of the same source without tags.

    The vocabulary are the words of the training images, the most frequent one first. A tag outside of it makes no
    example, and neither does an image without any other; one line says how many.

    Args:
        source: images with tags.
        least: how often a word occurs among the training images to be in the vocabulary.
        vectors: file of word2vec: words that have no vector there are not in the vocabulary either.
        untagged: what to do with images without a tag of the vocabulary: ``skip`` them, or ``stop`` at the first.
        transform, batch_size, workers, stores, eval_stores, views, seed: see ``ImageDataModule``.
    """

    source: TaggedSource  # type: ignore[assignment]

    def __init__(
        self,
        source: TaggedSource,
        least: int = 1,
        vectors: Path | None = None,
        untagged: Literal["skip", "stop"] = "skip",
        transform: Transform | None = None,
        batch_size: int = 100,
        workers: int = 0,
        stores: list[Path] | None = None,
        eval_stores: list[Path] | None = None,
        views: Views | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(source, transform, batch_size, workers, stores, eval_stores, views, seed)
        require(least > 0, f"least is how often a word occurs, at least 1, not {least}")
        require(untagged in ("skip", "stop"), f"untagged is skip or stop, not {untagged}")
        self.least, self.vectors, self.untagged = least, vectors, untagged
        self._lists: dict[str, Lists] = {}
        self._words: list[str] | None = None
        self._pairs: dict[str, Pairs] = {}

    # what there is

    def tags(self, split: str) -> Lists:
        """Return all tags of each image of ``split``, in the vocabulary or not."""
        if split not in self._lists:
            self._lists[split] = self.source.tags(self.images(split))
        return self._lists[split]

    @property
    def vocabulary(self) -> list[str]:
        """The words that a tag can be, the most frequent one first, equally frequent ones by the alphabet."""
        if self._words is None:
            counts = Counter(word for words in self.tags("train") for word in words)
            require(bool(counts), "no training image has a tag: check where the source looks for them")
            often = [word for word, count in counts.items() if count >= self.least]
            best = max(counts.values())
            require(bool(often), f"no word occurs {self.least} times, the most frequent one {best} times: lower least")
            if self.vectors is not None:
                known = set(read_word_vectors(self.vectors, often).words)
                often = [word for word in often if word in known]
                require(bool(often), f"none of the tags has a vector in {self.vectors}: are they of another language?")
            self._words = sorted(often, key=lambda word: (-counts[word], word))
        return self._words

    def pairs(self, split: str) -> Pairs:
        """Return the pairs of ``split``; the first time, one line says what is left out.

        Raises:
            UserError: an image has no tag in the vocabulary and ``untagged`` is ``stop``, or none has.
        """
        if split not in self._pairs:
            found = pairs_of(self.tags(split), self.vocabulary)
            self._say(split, found)
            self._pairs[split] = found
        return self._pairs[split]

    def _say(self, split: str, pairs: Pairs) -> None:
        images = self.images(split)
        bare = np.setdiff1d(np.arange(len(images)), pairs.index)
        if len(bare) and self.untagged == "stop":
            raise UserError(
                f"{images.name(int(bare[0]))} has no tag in the vocabulary: tag or remove it, or set untagged to skip"
            )
        enough = len(pairs) or split != "train"
        require(bool(enough), f"none of {len(images)} training images has a tag in the vocabulary: lower least")
        if pairs.outside or len(bare):
            log.warning(
                "%s: %d of %d tags are outside the vocabulary of %d words and left out, and with them %d of %d "
                "images, which have no other",
                *(split, pairs.outside, pairs.outside + len(pairs), len(self.vocabulary), len(bare), len(images)),
            )

    @property
    def spec(self) -> DataSpec:
        spec, words = super().spec, self.vocabulary
        tag = {"shape": [], "count": len(words), "words": words}
        identity = hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]
        return replace(spec, columns={**spec.columns, "tag": tag}, identities={**spec.identities, "tag": identity})

    def conditions(self, split: str, needs: frozenset[str]) -> Iterator[Batch]:
        """Yield the images of ``split`` once each, in order, without chance, with what is stored of them.

        Args:
            needs: keys of the batches, besides ``index`` and ``view``.

        Raises:
            UserError: neither images nor stores give one of the keys.
        """
        before, self._needs = self._needs, needs - {"tag"}
        try:
            self._check(split)
            return iter(self._loader(split, FixedBatches([(0, len(self.images(split)))], 1, self.batch_size)))
        finally:
            self._needs = before

    # loaders

    def train_dataloader(self) -> DataLoader[Batch]:
        if "tag" not in self.needs:
            return super().train_dataloader()
        rank, world = self._place()
        size = len(self.pairs("train"))
        sampler = StreamSampler(size, self.batch_size, self.seed, rank, world, start=lambda: self.samples_seen)
        return self._loader("train", sampler)

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        found = super().val_dataloader()
        if isinstance(found, list) or "tag" not in self.needs:
            return found
        count = len(self.pairs("eval"))
        part = FixedBatches([share(count, *self._place())], 1, self.batch_size)
        return self._loader("eval", part) if count else []

    def _rows(self, split: str) -> Dataset[Batch]:
        rows = super()._rows(split)
        return TagPairDataset(rows, self.pairs(split)) if "tag" in self.needs else rows

    def _available(self, split: str) -> frozenset[str]:
        return super()._available(split) | {"tag"}

    def _check(self, split: str) -> None:
        super()._check(split)
        if "tag" in self.needs:
            both = "tags and instances cannot be used together: a pair's image would be another than the neighbour"
            require("instance" not in self.needs, f"{both}; choose a condition without instances")
            self.pairs(split)
