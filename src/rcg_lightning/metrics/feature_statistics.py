"""The statistics of one set of images, from one pass over their features.

``FeatureStatistics`` accumulates them, for any extractor. Its ``compute`` returns a ``Summary``, from which the Fréchet
distance, the Inception score and the metrics of neighbours are computed.
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
    """The statistics of one set of images.

    Neither a tuple nor a dataclass: torchmetrics would take it apart.

    Args:
        moments: of the features.
        marginals: Σ p(y|x) over each split (SPLITS, K), float64; None without logits.
        negative_entropies: Σ of Σ_y p log p over each split (SPLITS,), float64.
        counts: number of images in each split (SPLITS,), float64.
        features: (N, d) float32, in the order of the images' names; None where they were not stored.
    """

    def __init__(
        self,
        moments: Moments,
        marginals: Tensor | None,
        negative_entropies: Tensor,
        counts: Tensor,
        features: Tensor | None,
    ) -> None:
        self.moments, self.marginals, self.negative_entropies = moments, marginals, negative_entropies
        self.counts, self.features = counts, features

    @property
    def count(self) -> int:
        return self.moments.count or 0

    def inception_score(self, splits: int | None = None) -> tuple[float, float]:
        """Return mean and standard deviation of the Inception score, see ``inception_score``."""
        if self.marginals is None:
            raise UserError("this extractor has no class logits, so there is no Inception score")
        return inception_score(self.marginals, self.negative_entropies, self.counts, splits)


class FeatureStatistics(SumMetric):
    """Accumulates the features and class logits of one set, as float64 sums that do not depend on the batches.

    Args:
        dim: d of the features.
        classes: K of the logits, None where there are none.
        store_features: also store the features, for metrics of neighbours (N·d float32, gathered by every process).
        identity: the extractor's identity, which the moments record.
    """

    total: Tensor
    outer: Tensor
    marginals: Tensor
    negative_entropies: Tensor
    counts: Tensor
    features: Any  # list of (B, d); one tensor once it is synchronised
    names: Any  # list of (B,), names of the images whose features are stored

    def __init__(
        self,
        dim: int,
        classes: int | None = None,
        store_features: bool = False,
        identity: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.dim, self.classes, self.store_features, self.identity = dim, classes, store_features, identity
        self.seen = 0  # by this process
        splits = {"marginals": (SPLITS, classes or 0), "negative_entropies": (SPLITS,), "counts": (SPLITS,)}
        self.add_sums({"total": (dim,), "outer": (dim, dim), **splits})
        if store_features:
            self.add_lists({"features": ((dim,), torch.float32), "names": ((), torch.int64)})

    def update(self, features: Tensor, logits: Tensor | None = None, index: Tensor | None = None) -> None:
        """Add features (B, d) and logits (B, K) of any float type.

        Args:
            index: (B,) int64, names of the images (their seeds). They decide the order of stored features and the
                split of the Inception score that an image belongs to, the same for any number of processes. By
                default the order within this process.
        """
        require(features.shape[1:] == (self.dim,), f"features of shape {tuple(features.shape)}, not (B, {self.dim})")
        require((logits is None) == (self.classes is None), "logits are needed with classes, and only with classes")
        wide = self._double(features)
        require(
            bool(wide.isfinite().all()), "the features hold NaN or infinity: the images or the extractor are broken"
        )
        self.total += wide.sum(dim=0)
        self.outer += wide.T @ wide
        names = torch.arange(self.seen, self.seen + len(wide)) if index is None else index.detach()
        names = names.to(self.total.device)
        # hashed: classes often come in turns, and a plain remainder would put only a few of them into each split
        split = mix(names) % SPLITS
        split = (split[:, None] == torch.arange(SPLITS, device=split.device)).double()  # (B, SPLITS), one-hot
        self.counts += split.sum(dim=0)
        self.seen += len(wide)
        if logits is not None:
            log_p = self._double(logits).log_softmax(dim=1)
            self.marginals += split.T @ log_p.exp()
            self.negative_entropies += split.T @ (log_p.exp() * log_p).sum(dim=1)
        if self.store_features:
            self.features.append(features.detach().float().to(self.total.device))
            self.names.append(names)

    def compute(self) -> Summary:
        """Return the statistics of all images of all processes, at least two."""
        count = int(self.counts.sum())
        require(count >= 2, f"statistics need at least 2 images, not {count}; thousands are usual")
        moments = Moments(*moments_from_sums(count, self.total, self.outer), count, self.identity)
        features = None
        if self.store_features:
            features = self.concatenated("features")[self.concatenated("names").argsort(stable=True)]
        # copies, because later updates change the states in place
        marginals = self.marginals.clone() if self.classes else None
        return Summary(moments, marginals, self.negative_entropies.clone(), self.counts.clone(), features)

    def reset(self) -> None:
        super().reset()
        self.seen = 0

    def _double(self, value: Tensor) -> Tensor:
        return value.detach().to(self.total.device).double()
