"""How far generated representations are from real ones: rep-FD, and next to it what real ones score."""

from collections.abc import Iterable, Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from rcg_lightning.data.store import Store
from rcg_lightning.evaluation.scorer import warn_of_doubts
from rcg_lightning.metrics.feature_statistics import FeatureStatistics
from rcg_lightning.metrics.fid import Moments, fid
from rcg_lightning.metrics.metric_name import metric_name
from rcg_lightning.types import require

NAME = "encoder"  # in the names of metrics, where others have an extractor's
_CHUNK = 16384


class RealRepresentations:
    """Stored representations of real images, to compare generated ones with; of views the first.

    Args:
        train: store of the training images.
        eval: of the evaluation ones, if any.
        most: use at most so many training representations, spread evenly; None for all.
    """

    def __init__(self, train: Store, evaluation: Store | None = None, most: int | None = None) -> None:
        for store in (train, evaluation):
            require(
                store is None or "representation" in store.columns,
                f"{store.path if store else ''} holds no representations: give a store that rcg extract made",
            )
        self.stores = {"train": train, "eval": evaluation}
        count = min(train.size, most or train.size)
        self.index = np.arange(count) * train.size // count

    @property
    def dim(self) -> int:
        """R of the representations (N, R)."""
        (dim,) = self._train.columns["representation"]["shape"]
        return dim

    @property
    def identity(self) -> str | None:
        """The identity of the encoder that made them."""
        return self._train.identity.get("representation")

    @property
    def images(self) -> int:
        """How many training representations are compared with."""
        return len(self.index)

    @cached_property
    def train(self) -> Moments:
        """Of the training representations."""
        return moments_of(rows_of(self._train, self.index), self.dim)

    @cached_property
    def evaluation(self) -> Moments | None:
        """Of the evaluation ones, None where there are fewer than two."""
        store = self.stores["eval"]
        return None if store is None or store.size < 2 else moments_of(rows_of(store, np.arange(store.size)), self.dim)

    def drawn(self, count: int, seed: int = 0) -> Moments:
        """Return the moments of ``count`` training representations drawn by ``seed``, with repetition."""
        # a local generator: a seed compares the same rows whatever else has been random
        draw = np.random.default_rng(seed)
        return moments_of(rows_of(self._train, self.index[draw.integers(0, len(self.index), count)]), self.dim)

    @property
    def _train(self) -> Store:
        assert self.stores["train"] is not None
        return self.stores["train"]


class RepresentationScorer(nn.Module):
    """Scores generated representations batch by batch, over any number of processes.

    The metrics: ``rep_fd``, the Fréchet distance to the training representations; ``rep_fd_of_real``, that of as many
    training representations drawn with repetition: what a perfect generator scores, for the distance falls with the
    number. With evaluation ones ``rep_fd_eval``, the distance to these, and ``rep_fd_of_real_eval``, that of all
    training representations.

    Args:
        real: what they are compared with.
    """

    images = None  # there are none to store

    def __init__(self, real: RealRepresentations) -> None:
        super().__init__()
        self.real = real
        self.statistics = FeatureStatistics(real.dim)
        self._warned = False

    def update(self, rows: Tensor, index: Tensor | None = None) -> None:
        """Add representations (B, R); ``index`` is taken for likeness to ``Scorer``, for nothing here needs names."""
        require(rows.ndim == 2, f"representations are rows (B, {self.real.dim}), not {tuple(rows.shape)}")
        self.statistics.update(rows)

    def compute(self) -> dict[str, float]:
        """Return the metrics by short names; every process gets all."""
        made = self.statistics.compute().moments
        if not self._warned:
            self._warned = True
            warn_of_doubts(made, self.real.train)
        return representation_distances(made, self.real)

    def reset(self) -> None:
        """Forget all representations."""
        self.statistics.reset()

    def full_names(self, metrics: dict[str, float], count: int) -> dict[str, float]:
        """Rename metrics as ``Scorer.full_names`` does: ``rep_fd/encoder_50k_train``."""
        return full_names(metrics, count)


def full_names(metrics: dict[str, float], count: int) -> dict[str, float]:
    """Rename metrics of representations so that they say encoder, number and reference."""
    named = {}
    for kind, value in metrics.items():
        reference = "eval" if kind.endswith("_eval") else "train"
        named[metric_name(kind.removesuffix("_eval"), NAME, count, reference)] = value
    return named


def representation_distances(made: Moments, real: RealRepresentations) -> dict[str, float]:
    """Return the metrics of ``RepresentationScorer`` for the moments of generated representations."""
    found = {"rep_fd": fid(made, real.train), "rep_fd_of_real": fid(real.drawn(made.count or real.images), real.train)}
    if real.evaluation is not None:
        found |= {"rep_fd_eval": fid(made, real.evaluation), "rep_fd_of_real_eval": fid(real.train, real.evaluation)}
    return found


def moments_of(rows: Iterable[Tensor], dim: int) -> Moments:
    """Return mean and covariance of batches (B, ``dim``), in this process alone."""
    statistics = FeatureStatistics(dim, sync_on_compute=False)
    for part in rows:
        statistics.update(part)
    return statistics.compute().moments


def rows_of(store: Store, index: np.ndarray) -> Iterator[Tensor]:
    """Yield the representations (B, R) float32 of images ``index`` (n,), a few thousand at a time."""
    for start in range(0, len(index), _CHUNK):
        yield torch.from_numpy(store.read("representation", index[start : start + _CHUNK])).float()
