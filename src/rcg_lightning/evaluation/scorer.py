"""All metrics of one set of samples against one reference, in one pass over the images."""

import logging
from collections.abc import Iterable

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from rcg_lightning.core.transfers import from_pinned_memory
from rcg_lightning.evaluation.reference import MAX_STORED_FEATURES, Reference, batches, spatial_statistics, spread
from rcg_lightning.metrics.class_accuracy import ClassAccuracy
from rcg_lightning.metrics.copy_rate import CopyRate
from rcg_lightning.metrics.feature_extractors import FeatureExtractor
from rcg_lightning.metrics.feature_statistics import FeatureStatistics, Summary
from rcg_lightning.metrics.fid import Moments, fid
from rcg_lightning.metrics.kid import SEED, kid
from rcg_lightning.metrics.metric_name import metric_name
from rcg_lightning.metrics.prdc import NEIGHBOURS, all_radii, density_coverage, precision_recall
from rcg_lightning.metrics.stored_images import StoredImages
from rcg_lightning.types import require

log = logging.getLogger(__name__)

CHEAP = frozenset({"fd", "is"})  # need no stored features
USUAL = CHEAP | {"sfd", "precision", "pixels"}
EVERY = USUAL | {"kd", "density"}
_OF_SAMPLES_ALONE = frozenset({"is", "is_std", "class_accuracy"})
_OF_FEATURES = frozenset({"precision", "density", "kd"})


def score(
    samples: Tensor | Iterable[Tensor],
    reference: Reference,
    extractor: FeatureExtractor,
    device: torch.device | str = "cpu",
    metrics: frozenset[str] = USUAL,
    neighbours: int = NEIGHBOURS,
    warn: bool = True,
) -> dict[str, float]:
    """Return the metrics that reference and extractor allow, by name.

    Args:
        samples: uint8 (N, C, H, W), or batches of them. They are re-batched, so the batch size changes nothing.
        reference: real images in the same extractor's features.
        extractor: makes the features.
        device: where to compute them.
        metrics: groups of EVERY, see Scorer.
        neighbours: k of precision and recall, density and coverage.
        warn: warn of too few images; not needed where all compared sets have the same number.
    """
    scorer = Scorer(extractor, reference, metrics, neighbours, warn=warn).to(device)
    for batch in batches(samples):
        scorer.update(from_pinned_memory(batch, torch.device(device)))
    return scorer.compute()


class Scorer(torch.nn.Module):
    """The metrics of ``score``, computed batch by batch on any number of processes.

    Args:
        extractor: makes the features.
        reference: real images in the same extractor's features.
        metrics: groups of metrics; those that reference and extractor allow are computed:
            ``fd``: ``fd`` and ``fd_eval``, Fréchet distances to training and evaluation images;
            ``sfd``: ``sfd`` and ``sfd_eval``, the same of spatial features;
            ``is``: ``is``, and ``is_std`` where it is computed over splits;
            ``precision``: ``precision`` and ``recall``;
            ``density``: ``density`` and ``coverage``;
            ``kd``: ``kd`` and ``kd_std``, the kernel distance of at most MAX_STORED_FEATURES features of either set;
            ``pixels``: ``nearest`` (mean pixel distance to the nearest training image) and ``copy_rate`` (fraction
            of samples that are nearer to one than 99 % of the evaluation images).
        neighbours: k of precision and recall, density and coverage, at most NEIGHBOURS.
        seed: chooses the kernel distance's subsets.
        image_shape: (C, H, W) of the samples, to store them in ``images``; None stores none.
        warn: warn, once, of too few images.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        reference: Reference,
        metrics: frozenset[str] = USUAL,
        neighbours: int = NEIGHBOURS,
        seed: int = SEED,
        image_shape: tuple[int, int, int] | None = None,
        warn: bool = True,
    ) -> None:
        super().__init__()
        unknown = metrics - EVERY
        require(not unknown, f"there are no metrics {sorted(unknown)}: choose from {sorted(EVERY)}")
        require(0 < neighbours <= NEIGHBOURS, f"{neighbours} neighbours: a reference has radii for 1 to {NEIGHBOURS}")
        self.extractor, self.reference, self.metrics = extractor, reference, metrics
        self.neighbours, self.seed = neighbours, seed
        stores_features = bool(metrics & _OF_FEATURES) and reference.train.features is not None
        self.statistics = FeatureStatistics(extractor.dim, extractor.classes, stores_features, extractor.identity)
        has_spatial = "sfd" in metrics and reference.train.spatial is not None
        self.spatial = spatial_statistics(extractor) if has_spatial else None
        pixels = "pixels" in metrics and reference.train.images is not None
        self.pixels = CopyRate(reference.train.images, reference.copy_threshold) if pixels else None
        self.images = None if image_shape is None else StoredImages(image_shape)
        self.class_accuracy = ClassAccuracy()
        self.number = 0  # samples of all processes, known once the metrics are computed
        self._warned = not warn

    def update(self, images: Tensor, index: Tensor | None = None, label: Tensor | None = None) -> None:
        """Add images (B, C, H, W) uint8; ``index`` (B,) are their positions, for metrics that depend on the order.

        ``label`` (B,) are the requested classes, in the extractor's numbering; -1 where none was requested.

        Raises:
            UserError: they are not uint8 images, or differ in size from the reference.
        """
        check_size(tuple(images.shape[2:]), self.reference.train.size)
        features, logits, spatial_features = self.extractor(images)
        self.statistics.update(features, logits, index=index)
        if self.spatial is not None and spatial_features is not None:
            self.spatial.update(spatial_features)
        if self.pixels is not None:
            self.pixels.update(images)
        if self.images is not None:
            self.images.update(images, index)
        if label is not None and logits is not None:
            self.class_accuracy.update(logits, label)

    def compute(self) -> dict[str, float]:
        """Return all metrics by short name, on every process."""
        samples = self.statistics.compute()
        self.number = samples.count
        if not self._warned:  # validation would repeat it every time
            self._warned = True
            warn_if_unreliable(samples.moments, self.reference.train.moments)
        found = compare(samples, self.reference, self.metrics, self.neighbours, self.seed)
        if self.spatial is not None:
            moments = self.spatial.compute().moments
            for name, real in (("sfd", self.reference.train), ("sfd_eval", self.reference.evaluation)):
                if real is not None and real.spatial is not None:
                    found[name] = fid(moments, real.spatial)
        return found | (self.pixels.compute() if self.pixels is not None else {}) | self.class_accuracy.compute()

    def reset(self) -> None:
        """Reset all metrics."""
        for metric in (self.statistics, self.spatial, self.pixels, self.images, self.class_accuracy):
            if metric is not None:
                metric.reset()

    def full_names(self, metrics: dict[str, float], count: int) -> dict[str, float]:
        """Add extractor, number of samples and reference to the names: ``fd/classifier_1346_train``."""
        named = {}
        for kind, value in metrics.items():
            pixels = kind in ("nearest", "copy_rate")  # always compared with training images
            extractor = "pixels" if pixels else self.extractor.name
            against = "train" if pixels else self.reference.name
            compared = "eval" if kind.endswith("_eval") else against
            reference = None if kind in _OF_SAMPLES_ALONE else compared
            named[metric_name(kind.removesuffix("_eval"), extractor, count, reference)] = value
        return named


def compare(
    samples: Summary,
    reference: Reference,
    metrics: frozenset[str] = USUAL,
    neighbours: int = NEIGHBOURS,
    seed: int = SEED,
) -> dict[str, float]:
    """Return the metrics of features by short name; for the arguments see ``Scorer``."""
    found: dict[str, float] = {}
    if "fd" in metrics:
        found["fd"] = fid(samples.moments, reference.train.moments)
        if reference.evaluation is not None:
            found["fd_eval"] = fid(samples.moments, reference.evaluation.moments)
    if "is" in metrics and samples.marginals is not None:
        found["is"], spread_of_splits = samples.inception_score()
        if spread_of_splits:
            found["is_std"] = spread_of_splits
    if samples.features is None or reference.train.features is None:
        return found
    generated = spread(samples.features, MAX_STORED_FEATURES)
    real = reference.train.features.to(generated.device)
    if "kd" in metrics and len(real) > 1:
        found["kd"], found["kd_std"] = kid(generated, real, seed=seed)
    if metrics & {"precision", "density"} and len(real) > NEIGHBOURS:
        radii = all_radii(real) if reference.radii is None else reference.radii.to(generated.device)
        balls = radii[:, neighbours - 1]
        if "precision" in metrics:
            found["precision"], found["recall"] = precision_recall(generated, real, neighbours, balls)
        if "density" in metrics:
            found["density"], found["coverage"] = density_coverage(generated, real, neighbours, balls)
    return found


def check_size(samples: tuple[int, ...], reference: tuple[int, ...] | None) -> None:
    """Raise a UserError where heights and widths differ; a reference without images has no size."""
    require(
        reference is None or samples == reference,
        f"samples of {'x'.join(map(str, samples))} pixels, a reference of {'x'.join(map(str, reference or ()))}: "
        "score images of one size (--resize of rcg evaluate), or measure a reference of this one",
    )


def reliability_warnings(samples: Moments, reference: Moments) -> list[str]:
    """Return the reasons why metrics of these sets may be unreliable, one line each."""
    lines, dim = [], len(samples.mean)
    for name, moments in (("samples", samples), ("reference images", reference)):
        if moments.count is not None and moments.count <= dim:
            lines.append(
                f"{moments.count} {name} for {dim} features: too few for their covariance, so the Fréchet distance is "
                f"biased upwards; take more than {dim}, or compare only with metrics of the same number"
            )
        if moments.covariance.trace() <= 1e-10 * moments.mean.square().sum():
            lines.append(f"all {name} have the same features: are they one constant image?")
    return lines


@rank_zero_only
def warn_if_unreliable(samples: Moments, reference: Moments) -> None:
    """Log the reasons why metrics may be unreliable, once for all processes."""
    for line in reliability_warnings(samples, reference):
        log.warning(line)
