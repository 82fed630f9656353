"""Search for copies: the samples that are nearest to a training image, shown next to it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from rcg_lightning.data.neighbours import nearest
from rcg_lightning.evaluation.image_grid import labelled_grid
from rcg_lightning.evaluation.reference import batches
from rcg_lightning.metrics.copy_rate import nearest_images
from rcg_lightning.metrics.feature_extractors import FeatureExtractor
from rcg_lightning.types import require


@dataclass(frozen=True, eq=False)
class Match:
    """A sample and the training image nearest to it.

    Attributes:
        sample: its position among the samples.
        training: position of the training image.
        distance: root mean square difference of the pixels in [0, 1], or Euclidean distance of the features.
        images: sample and training image, (2, C, H, W) uint8.
    """

    sample: int
    training: int
    distance: float
    images: Tensor


def closest_matches(
    samples: Tensor,
    training: Tensor | Iterable[Tensor],
    count: int,
    extractor: FeatureExtractor | None = None,
    device: torch.device | str = "cpu",
) -> list[Match]:
    """Return the ``count`` samples that are nearest to a training image, nearest first.

    Args:
        samples: uint8 (n, C, H, W).
        training: all training images (N, C, H, W) uint8, or batches of them, read once.
        count: matches to return; fewer where there are fewer samples.
        extractor: compares by its features; None compares pixels, which finds exact copies but no shifted ones.
        device: where to compare.
    """
    require(samples.dtype == torch.uint8 and samples.ndim == 4, "samples are uint8 images (n, C, H, W)")
    queries = samples.to(device) if extractor is None else _features(samples, extractor, device)
    best = torch.full((len(samples),), float("inf"))
    position, images = torch.zeros(len(samples), dtype=torch.int64), samples.cpu().clone()
    seen = 0
    for batch in batches(training):
        if extractor is None:
            distance, index = nearest_images(queries, batch)
        else:
            distances, indices = nearest(queries, _features(batch, extractor, device), 1)
            distance, index = distances[:, 0], indices[:, 0]
            require(
                batch.shape[1:] == samples.shape[1:],
                f"samples {tuple(samples.shape[1:])} cannot be shown next to training images {tuple(batch.shape[1:])}",
            )
        distance, index = distance.cpu(), index.cpu()
        nearer = distance < best
        best[nearer], position[nearer] = distance[nearer], index[nearer] + seen
        images[nearer] = batch.cpu()[index[nearer]]
        seen += len(batch)
    require(seen > 0, "there are no training images to compare with")
    order = best.argsort(stable=True)[:count].tolist()
    return [Match(i, int(position[i]), float(best[i]), torch.stack([samples[i].cpu(), images[i]])) for i in order]


def nearest_images_grid(matches: Sequence[Match]) -> Image.Image:
    """Draw one row per match: distance and both positions, the sample, its training image."""
    rows = [
        (f"distance {match.distance:.4f}\nsample {match.sample}, training {match.training}", match.images)
        for match in matches
    ]
    return labelled_grid(rows, 2)


def _features(images: Tensor, extractor: FeatureExtractor, device: torch.device | str) -> Tensor:
    return torch.cat([extractor(batch.to(device)).pooled for batch in batches(images)])
