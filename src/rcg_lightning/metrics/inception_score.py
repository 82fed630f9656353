"""The Inception score (Salimans et al. 2016) from sums over the splits of a set of images."""

import torch
from torch import Tensor

from rcg_lightning.types import require

SPLITS = 10  # in published Inception scores
SPLIT_FROM = 50_000  # images in published scores; fewer images are not split, because the score of few is biased more


def inception_score(
    marginals: Tensor, negative_entropies: Tensor, counts: Tensor, splits: int | None = None
) -> tuple[float, float]:
    """Return mean and standard deviation (unbiased; 0 for one split) of exp(mean KL(p(y|x) ‖ p(y))) over splits.

    A hash of the images' names assigns them to SPLITS splits. Sets of fewer than SPLIT_FROM images are one split.

    Args:
        marginals: Σ p(y|x) over each split (SPLITS, K), float64.
        negative_entropies: Σ of Σ_y p log p over each split (SPLITS,), float64.
        counts: number of images in each split (SPLITS,), float64.
        splits: 1 or SPLITS; None decides by the number of images.
    """
    splits = splits or (SPLITS if counts.sum() >= SPLIT_FROM else 1)
    require(splits in (1, SPLITS), f"an Inception score has 1 or {SPLITS} splits, not {splits}")
    sums = (value.sum(0, keepdim=True) if splits == 1 else value for value in (marginals, negative_entropies, counts))
    scores = _exponential_information(*sums)
    return scores.mean().item(), scores.std().item() if splits > 1 else 0.0


def _exponential_information(marginals: Tensor, negative_entropies: Tensor, counts: Tensor) -> Tensor:
    """Return exp of the mutual information of image and class, (S,), from sums over each of S splits."""
    marginal = marginals / counts[:, None]
    return (negative_entropies / counts - torch.xlogy(marginal, marginal).sum(1)).exp()
