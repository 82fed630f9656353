"""All metrics of one set of samples against one reference, in one pass over the pictures."""

from collections.abc import Iterable

import torch
from torch import Tensor

from rcg_lightning.evaluation.extractors import FeatureExtractor
from rcg_lightning.evaluation.manifold import nearest_pictures, precision_recall
from rcg_lightning.evaluation.metrics import FeatureStatistics, Summary, Sums, fid, metric_name
from rcg_lightning.evaluation.reference import FEATURES_KEPT, Reference, batches, spread


def score(
    samples: Tensor | Iterable[Tensor],
    reference: Reference,
    extractor: FeatureExtractor,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Return every metric that reference and extractor allow, by name.

    ``fd`` and ``fd_heldout`` (Fréchet distances to training and held-out pictures), ``is`` (and ``is_std`` where it is
    taken over splits), ``precision``, ``recall``, ``nearest`` (mean pixel distance to the nearest training picture) and
    ``copy_rate`` (share of samples nearer to one than 99 % of held-out pictures are).

    Args:
        samples: uint8 (N, C, H, W), or batches of them. Batches are cut anew, so their sizes change nothing.
    """
    scorer = Scorer(extractor, reference).to(device)
    for batch in batches(samples):
        scorer.update(batch.to(device))
    return scorer.compute()


class Scorer(torch.nn.Module):
    """What ``score`` computes, batch by batch and over any number of processes.

    Args:
        extractor: makes the features.
        reference: real pictures in the same extractor's features.
        neighbours: whether precision, recall and pixel distances are wanted; in validation they may cost too much.
    """

    def __init__(self, extractor: FeatureExtractor, reference: Reference, neighbours: bool = True) -> None:
        super().__init__()
        self.extractor, self.reference = extractor, reference
        keep = neighbours and reference.radii is not None
        self.statistics = FeatureStatistics(extractor.dim, extractor.classes, keep, extractor.identity)
        pixels = neighbours and reference.train.pictures is not None
        self.pixels = PixelDistances(reference.train.pictures, reference.copy_threshold) if pixels else None

    def update(self, images: Tensor, index: Tensor | None = None) -> None:
        """Add pictures (B, C, H, W) uint8; ``index`` (B,) are their names, for the splits of the Inception score."""
        self.statistics.update(*self.extractor(images), index=index)
        if self.pixels is not None:
            self.pixels.update(images)

    def compute(self) -> dict[str, float]:
        """Return the metrics by their short names; every process gets all."""
        found = compare(self.statistics.compute(), self.reference)
        return found | (self.pixels.compute() if self.pixels is not None else {})

    def reset(self) -> None:
        """Forget all pictures."""
        self.statistics.reset()
        if self.pixels is not None:
            self.pixels.reset()

    def full_names(self, metrics: dict[str, float], count: int) -> dict[str, float]:
        """Rename metrics so that they say extractor, number of samples and reference: ``fd/classifier_1346_train``."""
        named = {}
        for kind, value in metrics.items():
            extractor = "pixels" if kind in ("nearest", "copy_rate") else self.extractor.name
            reference = None if kind in ("is", "is_std") else "heldout" if kind.endswith("_heldout") else "train"
            named[metric_name(kind.removesuffix("_heldout"), extractor, count, reference)] = value
        return named


class PixelDistances(Sums):
    """Distances in pixels to the nearest training picture: their mean, and how many samples are copies.

    Args:
        bank: training pictures (N, C, H, W) uint8.
        threshold: distance below which a sample counts as a copy; None: copies are not counted.
    """

    distance: Tensor
    copies: Tensor
    count: Tensor

    def __init__(self, bank: Tensor | None, threshold: float | None) -> None:
        super().__init__()
        assert bank is not None
        # in a tuple, so that moving the metric does not move the bank: it is read chunk by chunk
        self.bank, self.threshold = (bank,), threshold
        self.add_sums({"distance": (), "copies": (), "count": ()})

    def update(self, images: Tensor) -> None:
        """Add pictures (B, C, H, W) uint8."""
        found, _ = nearest_pictures(images, self.bank[0])
        found = found.to(self.distance.device).double()
        self.distance += found.sum()
        self.count += len(found)
        if self.threshold is not None:
            self.copies += (found < self.threshold).sum()

    def compute(self) -> dict[str, float]:
        """Return ``nearest`` and, where copies are counted, ``copy_rate``."""
        found = {"nearest": (self.distance / self.count).item()}
        return found if self.threshold is None else found | {"copy_rate": (self.copies / self.count).item()}


def compare(samples: Summary, reference: Reference) -> dict[str, float]:
    """Return the metrics of features, by their short names."""
    found = {"fd": fid(samples.moments, reference.train.moments)}
    if reference.heldout is not None:
        found["fd_heldout"] = fid(samples.moments, reference.heldout.moments)
    if samples.classes is not None:
        found["is"], spread_of_splits = samples.inception_score()
        if spread_of_splits:
            found["is_std"] = spread_of_splits
    real = reference.train.features
    if samples.features is not None and real is not None and reference.radii is not None:
        mine, device = spread(samples.features, FEATURES_KEPT), samples.features.device
        found["precision"], found["recall"] = precision_recall(
            mine, real.to(device), real_radii=reference.radii.to(device)
        )
    return found
