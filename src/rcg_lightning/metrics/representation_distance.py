"""The distance of generated representations to real ones: rep-FD, and its reference value for real ones."""

from collections.abc import Iterable, Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from rcg_lightning.data.store import Store
from rcg_lightning.evaluation.scorer import warn_if_unreliable
from rcg_lightning.metrics.feature_statistics import FeatureStatistics
from rcg_lightning.metrics.fid import Moments, fid
from rcg_lightning.metrics.metric_name import metric_name
from rcg_lightning.types import require

NAME = "encoder"  # in the names of metrics, in place of an extractor's name
_CHUNK = 16384


class RealRepresentations:
    """Stored representations of real images, of their first view, as a reference for generated ones.

    Args:
        train: store of the training images.
        evaluation: store of the evaluation images, if any.
        max_count: use at most this number of training representations, evenly spread; None uses all.
    """

    def __init__(self, train: Store, evaluation: Store | None = None, max_count: int | None = None) -> None:
        for store in (train, evaluation):
            require(
                store is None or "representation" in store.columns,
                f"{store.path if store else ''} holds no representations: give a store that rcg extract made",
            )
        self.stores = {"train": train, "eval": evaluation}
        count = min(train.size, max_count or train.size)
        self.index = np.arange(count) * train.size // count

    @property
    def dim(self) -> int:
        """The dimension R of the representations (N, R)."""
        (dim,) = self._train.columns["representation"]["shape"]
        return dim

    @property
    def identity(self) -> str | None:
        """The identity of their encoder."""
        return self._train.identity.get("representation")

    @property
    def count(self) -> int:
        """The number of training representations in use."""
        return len(self.index)

    @cached_property
    def train(self) -> Moments:
        """The moments of the training representations."""
        return moments_of(rows_of(self._train, self.index), self.dim)

    @cached_property
    def evaluation(self) -> Moments | None:
        """The moments of the evaluation representations, None where there are fewer than two."""
        store = self.stores["eval"]
        return None if store is None or store.size < 2 else moments_of(rows_of(store, np.arange(store.size)), self.dim)

    def resampled(self, count: int, seed: int = 0) -> Moments:
        """Return the moments of ``count`` random training representations, with repetition."""
        # the seed selects real rows, not noise of samples: a local generator, so that the reference value is repeatable
        generator = np.random.default_rng(seed)
        return moments_of(rows_of(self._train, self.index[generator.integers(0, len(self.index), count)]), self.dim)

    @property
    def _train(self) -> Store:
        assert self.stores["train"] is not None
        return self.stores["train"]


class RepresentationScorer(nn.Module):
    """Scores generated representations batch by batch, over any number of processes.

    The metrics are ``rep_fd``, the Fréchet distance to the training representations, and its reference value
    ``rep_fd_of_real``: the distance of as many random training representations, which a perfect generator reaches.
    The number matters, because the distance falls with it. With evaluation representations there are also
    ``rep_fd_eval``, the distance to these, and ``rep_fd_of_real_eval``, the distance of all training representations
    to these.
    """

    images = None  # a ``Scorer`` may store images here; representations have none

    def __init__(self, real: RealRepresentations) -> None:
        super().__init__()
        self.real = real
        self.statistics = FeatureStatistics(real.dim)
        self._warned = False

    def update(self, representation: Tensor, index: Tensor | None = None) -> None:
        """Add representations (B, R); ``index`` is accepted as in ``Scorer``, but not used."""
        shape = tuple(representation.shape)
        require(len(shape) == 2, f"representations have shape (B, {self.real.dim}), not {shape}")
        self.statistics.update(representation)

    def compute(self) -> dict[str, float]:
        """Return the metrics by their short names, the same in every process."""
        generated = self.statistics.compute().moments
        if not self._warned:
            self._warned = True
            warn_if_unreliable(generated, self.real.train)
        return representation_distances(generated, self.real)

    def reset(self) -> None:
        """Forget all representations."""
        self.statistics.reset()

    def full_names(self, metrics: dict[str, float], count: int) -> dict[str, float]:
        """Rename metrics as ``Scorer.full_names`` does: ``rep_fd/encoder_50k_train``."""
        return full_names(metrics, count)


def full_names(metrics: dict[str, float], count: int) -> dict[str, float]:
    """Rename metrics of representations so that their names contain encoder, number and reference."""
    named = {}
    for kind, value in metrics.items():
        reference = "eval" if kind.endswith("_eval") else "train"
        named[metric_name(kind.removesuffix("_eval"), NAME, count, reference)] = value
    return named


def representation_distances(generated: Moments, real: RealRepresentations) -> dict[str, float]:
    """Return the metrics of ``RepresentationScorer`` for the moments of generated representations."""
    as_many = real.resampled(generated.count or real.count)
    found = {"rep_fd": fid(generated, real.train), "rep_fd_of_real": fid(as_many, real.train)}
    if real.evaluation is not None:
        found["rep_fd_eval"] = fid(generated, real.evaluation)
        found["rep_fd_of_real_eval"] = fid(real.train, real.evaluation)
    return found


def moments_of(batches: Iterable[Tensor], dim: int) -> Moments:
    """Return the moments of batches (B, ``dim``) of this process alone."""
    statistics = FeatureStatistics(dim, sync_on_compute=False)
    for batch in batches:
        statistics.update(batch)
    return statistics.compute().moments


def rows_of(store: Store, index: np.ndarray) -> Iterator[Tensor]:
    """Yield the representations (B, R) float32 of images ``index`` (n,), a few thousand at a time."""
    for start in range(0, len(index), _CHUNK):
        yield torch.from_numpy(store.read("representation", index[start : start + _CHUNK])).float()
