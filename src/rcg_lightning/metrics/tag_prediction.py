"""Words predicted for images: from generated word vectors, and without any, and how many of them are right.

A prediction is a score for each word of a vocabulary, (N, V): the higher, the sooner the word is said.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from rcg_lightning.data.neighbours import nearest as nearest_rows
from rcg_lightning.types import require

_CHUNK = 1 << 26  # similarities held at a time


def vote(samples: Tensor, words: Tensor, nearest: int = 20) -> Tensor:
    """How many of an image's samples have each word among their nearest ones (Mirza & Osindero 2014, section 4.2).

    Equal numbers are put in order by the mean cosine, which adds less than 1.

    Args:
        samples: (N, S, D), word vectors made for each of N images.
        words: (V, D), the vectors of the vocabulary.
        nearest: how many words each sample speaks for, by cosine.

    Returns:
        (N, V) float64.
    """
    require(
        0 < nearest <= len(words),
        f"{nearest} nearest words were asked for, the vocabulary has {len(words)}: ask for fewer",
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
    """How often each word occurs: ``has`` (N, V) bool of the training images -> (V,) float64."""
    return has.sum(0).double()


def neighbours_vote(images: Tensor, training: Tensor, has: Tensor, k: int) -> Tensor:
    """How many of the k nearest training images, by the cosine of representations, have each word.

    Equal numbers are put in order by how frequent the word is.

    Args:
        images: (N, R).
        training: (M, R).
        has: (M, V) bool.
        k: number of neighbours.

    Returns:
        (N, V) float64.
    """
    rows = nearest_rows(images, training, k, "cosine")[1].to(has.device)  # (N, k)
    often = frequencies(has)
    return torch.stack([has[row].sum(0) for row in rows]) + often / (often.max() + 1)


def metrics(scores: Tensor, truth: Tensor, count: int = 10) -> dict[str, float]:
    """Return precision and recall of the ``count`` best words, and mean average precision of all, means over images.

    Average precision of an image: the mean, over its own words, of the share of own words among those said up to it.

    Args:
        scores: (N, V) or, the same for all images, (V,).
        truth: (N, V) bool, at least one word for each image.
        count: words that are said of each image.
    """
    require(0 < count <= truth.shape[1], f"{count} words for each image were asked for, there are {truth.shape[1]}")
    require(bool(truth.any(1).all()), "an image without a word of its own says nothing about a prediction")
    order = scores.expand(truth.shape).argsort(dim=1, descending=True, stable=True).to(truth.device)
    hits = truth.gather(1, order).double()
    own, output = hits.sum(1), hits[:, :count].sum(1)
    places = torch.arange(1, hits.shape[1] + 1, device=hits.device)
    average = (hits * hits.cumsum(1) / places).sum(1) / own
    return {
        f"precision@{count}": (output / count).mean().item(),
        f"recall@{count}": (output / own).mean().item(),
        "map": average.mean().item(),
    }
