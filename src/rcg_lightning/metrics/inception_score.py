"""Inception score (Salimans et al. 2016) from sums over the parts of a set of images."""

import torch
from torch import Tensor

from rcg_lightning.types import require

SPLITS = 10  # of the published Inception scores,
SPLIT_FROM = 50_000  # which are over so many images; smaller splits are biased more: one for all below it


def inception_score(
    classes: Tensor, certainty: Tensor, parts: Tensor, splits: int | None = None
) -> tuple[float, float]:
    """Return mean and standard deviation (unbiased; 0 for one split) of exp(mean KL(p(y|x) ‖ p(y))) over splits.

    From SPLIT_FROM images on, a set has SPLITS parts, which a hash of the images' names makes; below, one, since a
    score of few images is too low.

    Args:
        classes: Σ p(y|x) of each part (SPLITS, K), float64.
        certainty: Σ of the negative entropies Σ_y p log p of each part (SPLITS,), float64.
        parts: number of images in each part (SPLITS,), float64.
        splits: 1 or SPLITS; None follows the rule.
    """
    splits = splits or (SPLITS if parts.sum() >= SPLIT_FROM else 1)
    require(splits in (1, SPLITS), f"an Inception score is taken over 1 or {SPLITS} splits, not {splits}")
    sums = (value.sum(0, keepdim=True) if splits == 1 else value for value in (classes, certainty, parts))
    scores = _exponential_information(*sums)
    return scores.mean().item(), scores.std().item() if splits > 1 else 0.0


def _exponential_information(classes: Tensor, certainty: Tensor, parts: Tensor) -> Tensor:
    """exp of the mutual information of image and class, (S,), from sums over each of S parts."""
    marginal = classes / parts[:, None]
    return (certainty / parts - torch.xlogy(marginal, marginal).sum(1)).exp()
