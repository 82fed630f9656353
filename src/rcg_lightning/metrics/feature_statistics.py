"""One pass over features, from which Fréchet distance, Inception score and the neighbour metrics all come.

``FeatureStatistics`` accumulates; its ``compute`` gives a ``Summary``, the statistics of one set of images, from
which metrics against other sets are taken. Nothing here knows what made the features.
"""

from typing import Any

import torch
from torch import Tensor

from rcg_lightning.core.counter_rng import mix
from rcg_lightning.core.frechet import moments_from_sums
from rcg_lightning.errors import UserError
from rcg_lightning.metrics.fid import Moments
from rcg_lightning.metrics.inception_score import SPLITS, inception_score
from rcg_lightning.metrics.sum_metric import SumMetric
from rcg_lightning.types import require


class Summary:
    """The statistics of one set of images, made by ``FeatureStatistics.compute``.

    A plain class: torchmetrics takes tuples and dataclasses that a metric returns apart.

    Args:
        moments: of the features.
        classes: Σ p(y|x) of each of SPLITS parts (SPLITS, K), float64; None without logits.
        certainty: Σ of the negative entropies Σ_y p log p of each part (SPLITS,), float64.
        parts: number of images in each part (SPLITS,), float64.
        features: (N, d) float32 where they were kept, else None, in the order of their images' names.
    """

    def __init__(
        self, moments: Moments, classes: Tensor | None, certainty: Tensor, parts: Tensor, features: Tensor | None
    ) -> None:
        self.moments, self.classes, self.certainty, self.parts = moments, classes, certainty, parts
        self.features = features

    @property
    def count(self) -> int:
        return self.moments.count or 0

    def inception_score(self, splits: int | None = None) -> tuple[float, float]:
        """Return mean and standard deviation of the Inception score, see ``inception_score``."""
        if self.classes is None:
            raise UserError("this extractor gives no class logits, so there is no Inception score")
        return inception_score(self.classes, self.certainty, self.parts, splits)


class FeatureStatistics(SumMetric):
    """Accumulates one set's features and class logits, in float64 sums that do not depend on batches or processes.

    Args:
        dim: d of the features.
        classes: K of the logits, None where there are none.
        keep: keep the features themselves too, for neighbour metrics (N·d float32, gathered by every process).
        identity: of the extractor, carried into the moments.
    """

    total: Tensor
    outer: Tensor
    marginals: Tensor
    negative_entropies: Tensor
    counts: Tensor
    kept: Any  # list of (B, d); one tensor once it is synchronised
    names: Any  # list of (B,), of the images whose features are kept

    def __init__(
        self, dim: int, classes: int | None = None, keep: bool = False, identity: str | None = None, **settings: Any
    ) -> None:
        super().__init__(**settings)
        self.dim, self.classes, self.keep, self.identity = dim, classes, keep, identity
        self.seen = 0  # by this process
        parts = {"marginals": (SPLITS, classes or 0), "negative_entropies": (SPLITS,), "counts": (SPLITS,)}
        self.add_sums({"total": (dim,), "outer": (dim, dim), **parts})
        if keep:
            self.add_rows({"kept": ((dim,), torch.float32), "names": ((), torch.int64)})

    def update(self, features: Tensor, logits: Tensor | None = None, index: Tensor | None = None) -> None:
        """Add features (B, d) and logits (B, K) of any float type.

        Args:
            index: (B,) int64, names of the images (their seeds): they decide which split of the Inception score each
                one belongs to and the order of kept features, the same for any number of processes. By default the
                order within this process.
        """
        require(features.shape[1:] == (self.dim,), f"features of shape {tuple(features.shape)}, not (B, {self.dim})")
        require((logits is None) == (self.classes is None), "logits must be given always or, without classes, never")
        wide = self._double(features)
        require(
            bool(wide.isfinite().all()), "the features hold NaN or infinity: the images or the extractor are broken"
        )
        self.total += wide.sum(dim=0)
        self.outer += wide.T @ wide
        names = torch.arange(self.seen, self.seen + len(wide)) if index is None else index.detach()
        names = names.to(self.total.device)
        # hashed, for classes are often drawn in turns and a plain remainder would give each split a few classes only
        part = mix(names) % SPLITS
        part = (part[:, None] == torch.arange(SPLITS, device=part.device)).double()  # (B, SPLITS), one-hot
        self.counts += part.sum(dim=0)
        self.seen += len(wide)
        if logits is not None:
            log_p = self._double(logits).log_softmax(dim=1)
            self.marginals += part.T @ log_p.exp()
            self.negative_entropies += part.T @ (log_p.exp() * log_p).sum(dim=1)
        if self.keep:
            self.kept.append(features.detach().float().to(self.total.device))
            self.names.append(names)

    def compute(self) -> Summary:
        """Return the statistics of everything seen by all processes; at least two images."""
        count = int(self.counts.sum())
        require(count >= 2, f"statistics of {count} images say nothing: at least 2 are needed, thousands are usual")
        moments = Moments(*moments_from_sums(count, self.total, self.outer), count, self.identity)
        kept = None
        if self.keep:
            kept = self.rows("kept")[self.rows("names").argsort(stable=True)]
        # copies, for the states are added to in place later
        classes = self.marginals.clone() if self.classes else None
        return Summary(moments, classes, self.negative_entropies.clone(), self.counts.clone(), kept)

    def reset(self) -> None:
        super().reset()
        self.seen = 0

    def _double(self, value: Tensor) -> Tensor:
        return value.detach().to(self.total.device).double()
