"""Parzen-window log-likelihood: how probable test images are under Gaussian kernels on samples.

The metric of early generative models on MNIST. It depends on the bandwidth and the range of pixels more than on the
model. So the rule for the bandwidth is given here, and every result needs the bandwidth, both counts and the standard
error next to it.
"""

import logging
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.metrics.sum_metric import SumMetric
from rcg_lightning.types import require

log = logging.getLogger(__name__)

BANDWIDTHS = tuple(10 ** (-1 + step / 9) for step in range(10))  # 0.1 to 1, in equal ratios, for pixels in [0, 1]
VALIDATION = 1000  # maximal number of validation images
_CHUNK = 1000


def parzen_likelihood(
    samples: Tensor, validation: Tensor, test: Tensor, bandwidths: Sequence[float] = BANDWIDTHS
) -> dict[str, float]:
    """Return ``parzen`` (the mean log-likelihood in nats), ``parzen_se`` (its standard error) and ``bandwidth``.

    The bandwidth is the one of ``bandwidths`` under which the validation images are most probable.

    Args:
        samples: uint8 (N, C, H, W).
        validation: real images, uint8 (n, C, H, W), neither test images nor images that the generator was trained on.
        test: real images, uint8 (m, C, H, W).
        bandwidths: σ to choose from, for pixels in [0, 1].
    """
    for name, images in (("samples", samples), ("validation images", validation), ("test images", test)):
        require(
            images.dtype == torch.uint8 and images.shape[1:] == test.shape[1:] and len(images) > 0,
            f"the {name} are {images.dtype} {tuple(images.shape)}, but need uint8 and the shape of the test images, "
            f"{tuple(test.shape[1:])}",
        )
    centres = pixels(samples)
    bandwidth = choose_bandwidth(centres, pixels(validation), bandwidths)
    metric = ParzenWindow(centres, bandwidth, sync_on_compute=False).to(samples.device)  # this process has all points
    for part in test.split(_CHUNK):
        metric.update(pixels(part))
    return metric.compute() | {"bandwidth": bandwidth}


def validation_and_test(evaluation: Tensor) -> tuple[Tensor, Tensor]:
    """Split evaluation images into validation images, which choose the bandwidth, and test images, which are scored.

    The first of every five images is for validation, but at most 1000 of these, evenly spread; all others are scored.
    """
    require(len(evaluation) >= 5, f"{len(evaluation)} evaluation images: a Parzen likelihood needs at least 5")
    index = torch.arange(0, len(evaluation), 5)
    index = index[torch.arange(min(len(index), VALIDATION)) * len(index) // min(len(index), VALIDATION)]
    test = torch.ones(len(evaluation), dtype=torch.bool)
    test[index] = False
    return evaluation[index], evaluation[test]


class ParzenImages:
    """The real images of a Parzen likelihood, uint8 (n, C, H, W) each, read on demand and once.

    Where the source has validation images, up to 1000 of them, evenly spread, choose the bandwidth, and every
    evaluation image is scored. Otherwise ``validation_and_test`` splits the evaluation images.
    """

    def __init__(self, data: ImageDataModule) -> None:
        self.data = data
        self._of_real: dict[int, dict[str, float]] = {}

    @cached_property
    def validation(self) -> Tensor:
        """The images that choose the bandwidth."""
        if not self.data.has_validation:
            return validation_and_test(self._evaluation)[0]
        count = len(self.data.images("validation"))
        return self._read("validation", np.arange(min(count, VALIDATION)) * count // min(count, VALIDATION))

    @cached_property
    def test(self) -> Tensor:
        """The images that are scored."""
        return self._evaluation if self.data.has_validation else validation_and_test(self._evaluation)[1]

    def metrics(self, samples: Tensor) -> dict[str, float]:
        """Return ``parzen_likelihood`` of samples (N, C, H, W) and, as ``…_of_real``, of as many training images.

        The training images are evenly spread, or all of them where they are fewer than the samples.
        """
        device, count = samples.device, min(len(samples), len(self.data.images("train")))
        real = (self.validation.to(device), self.test.to(device))
        if count not in self._of_real:
            index = np.arange(count) * len(self.data.images("train")) // count
            found = parzen_likelihood(self._read("train", index).to(device), *real)
            self._of_real[count] = {f"{name}_of_real": value for name, value in found.items()}
        return parzen_likelihood(samples, *real) | self._of_real[count]

    @cached_property
    def _evaluation(self) -> Tensor:
        return self._read("eval", np.arange(len(self.data.images("eval"))))

    def _read(self, split: str, index: np.ndarray) -> Tensor:
        parts = [batch["image"] for batch in self.data.deterministic_batches(split, frozenset({"image"}), index)]
        return torch.cat(parts) if parts else torch.empty(0, *self.data.spec.image, dtype=torch.uint8)


class ParzenWindow(SumMetric):
    """Mean log-likelihood under Gaussian kernels, over batches and processes.

    Args:
        centres: samples (N, d).
        bandwidth: σ of the kernels.
    """

    total: Tensor
    squares: Tensor
    count: Tensor

    def __init__(self, centres: Tensor, bandwidth: float, **settings: Any) -> None:
        super().__init__(**settings)
        self.centres, self.bandwidth = (centres,), bandwidth  # in a tuple: not moved with the metric
        self.add_sums({"total": (), "squares": (), "count": ()})

    def update(self, points: Tensor) -> None:
        """Add points (n, d)."""
        found = log_likelihoods(points, self.centres[0], [self.bandwidth])[0].to(self.total.device)
        self.total += found.sum()
        self.squares += found.square().sum()
        self.count += len(found)

    def compute(self) -> dict[str, float]:
        """Return ``parzen`` and ``parzen_se``, the standard deviation / √n; 0 for one point."""
        mean = self.total / self.count
        variance = (self.squares - self.total * mean).clamp_min(0) / (self.count - 1).clamp_min(1)
        return {"parzen": mean.item(), "parzen_se": (variance / self.count).sqrt().item()}


def choose_bandwidth(centres: Tensor, validation: Tensor, bandwidths: Sequence[float] = BANDWIDTHS) -> float:
    """Return the one of ``bandwidths`` under which ``validation`` (n, d) is most probable, for ``centres`` (N, d)."""
    require(bool(bandwidths) and min(bandwidths) > 0, f"bandwidths are positive, not {list(bandwidths)}")
    mean = log_likelihoods(validation, centres, bandwidths).mean(1)
    best = bandwidths[int(mean.argmax())]
    if len(bandwidths) > 1 and best in (min(bandwidths), max(bandwidths)):
        log.warning("the bandwidth %.4g is at the end of its grid: a better bandwidth may lie outside it", best)
    return best


def log_likelihoods(points: Tensor, centres: Tensor, bandwidths: Sequence[float]) -> Tensor:
    """Return log (1/N) Σ_i N(x; c_i, σ² I) of each point, for each σ, float64 (len(bandwidths), n).

    Args:
        points: x (n, d).
        centres: c (N, d).
        bandwidths: σ.
    """
    require(points.shape[1] == centres.shape[1], f"points have {points.shape[1]} dimensions, not {centres.shape[1]}")
    centres, points = (value.cpu() if value.device.type == "mps" else value for value in (centres, points))
    centres = centres.to(points.device).double()
    shift = centres.mean(0)  # less cancellation in |x|² − 2xc + |c|²
    centres = centres - shift
    lengths = centres.square().sum(1)
    count, dim = centres.shape
    norms = [math.log(count) + dim / 2 * math.log(2 * math.pi * sigma**2) for sigma in bandwidths]
    found = []
    for part in points.split(_CHUNK):
        x = part.double() - shift
        squared = (x.square().sum(1)[:, None] - 2 * x @ centres.T + lengths).clamp_min(0)  # (chunk, N)
        sums = [torch.logsumexp(squared / (-2 * sigma**2), dim=1) for sigma in bandwidths]
        found.append(torch.stack([value - norm for value, norm in zip(sums, norms)]))
    return torch.cat(found, dim=1)


def pixels(images: Tensor) -> Tensor:
    """Convert images uint8 (n, C, H, W) to points (n, C·H·W) float64 (float32 on MPS) in [0, 1]."""
    return images.flatten(1).to(torch.float32 if images.device.type == "mps" else torch.float64) / 255
