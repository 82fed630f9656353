"""Tags predicted for images, from generated word vectors or without a generator, and how many of them are correct.

A prediction is a score (N, V) for each word of a vocabulary; words with higher scores are predicted first.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from rcg_lightning.core.precision import float32_precision
from rcg_lightning.data.neighbours import nearest as nearest_rows
from rcg_lightning.types import require

_CHUNK = 1 << 26  # cosines in memory at a time


@float32_precision("highest")
def vote(samples: Tensor, words: Tensor, nearest: int = 20) -> Tensor:
    """Count, for each word, the samples of an image that have it among their nearest (Mirza & Osindero 2014, sec. 4.2).

    The mean cosine orders equal counts; it adds less than 1.

    Args:
        samples: (N, S, D), S generated word vectors for each image.
        words: (V, D), the vectors of the vocabulary.
        nearest: number of words that each sample votes for, by cosine.

    Returns:
        (N, V) float64.
    """
    require(
        0 < nearest <= len(words),
        f"{nearest} nearest words were asked for, but the vocabulary has {len(words)}: ask for fewer",
    )
    words = F.normalize(words.to(samples.device).float(), dim=1)
    size = max(_CHUNK // (samples.shape[1] * len(words)), 1)
    return torch.cat([_vote(part, words, nearest) for part in samples.split(size)])


def _vote(samples: Tensor, words: Tensor, nearest: int) -> Tensor:
    cosines = F.normalize(samples.float(), dim=2) @ words.T  # (n, S, V)
    near = cosines.topk(nearest, dim=2).indices.flatten(1)  # (n, S nearest)
    counts = torch.zeros(len(samples), len(words), dtype=torch.float64, device=samples.device)
    counts.scatter_add_(1, near, torch.ones_like(near, dtype=torch.float64))
    return counts + (1 + cosines.double().mean(1)) / 4


def frequencies(has: Tensor) -> Tensor:
    """Return how often each word occurs, (V,) float64, from the tags ``has`` (N, V) bool of the training images."""
    return has.sum(0).double()


def neighbours_vote(images: Tensor, training: Tensor, has: Tensor, k: int) -> Tensor:
    """Count, for each word, the nearest training images that have it, by the cosine of representations.

    The frequency of the words orders equal counts.

    Args:
        images: (N, R).
        training: (M, R).
        has: (M, V) bool, the tags of the training images.
        k: number of neighbours.

    Returns:
        (N, V) float64.
    """
    neighbours = nearest_rows(images, training, k, "cosine")[1].to(has.device)  # (N, k)
    frequency = frequencies(has)
    return torch.stack([has[index].sum(0) for index in neighbours]) + frequency / (frequency.max() + 1)


def metrics(scores: Tensor, truth: Tensor, count: int = 10) -> dict[str, float]:
    """Return precision and recall of the ``count`` best words, and mean average precision of all, as means over images.

    The average precision of an image is the mean, over its tags, of the precision of the words up to and including it.

    Args:
        scores: (N, V), or (V,) for the same prediction for all images.
        truth: (N, V) bool, at least one tag for each image.
        count: number of predicted words for each image.
    """
    require(0 < count <= truth.shape[1], f"{count} words for each image were asked for, there are {truth.shape[1]}")
    require(bool(truth.any(1).all()), "every image needs at least one tag: predictions for others cannot be scored")
    order = scores.expand(truth.shape).argsort(dim=1, descending=True, stable=True).to(truth.device)
    hits = truth.gather(1, order).double()
    tags, correct = hits.sum(1), hits[:, :count].sum(1)
    ranks = torch.arange(1, hits.shape[1] + 1, device=hits.device)
    average_precision = (hits * hits.cumsum(1) / ranks).sum(1) / tags
    return {
        f"precision@{count}": (correct / count).mean().item(),
        f"recall@{count}": (correct / tags).mean().item(),
        "map": average_precision.mean().item(),
    }
