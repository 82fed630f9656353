"""Parzen-window log-likelihood: how probable test images are under Gaussian kernels on samples.

The metric of early generative models on MNIST. It follows the bandwidth and the range of pixels more than the model, so
the bandwidth rule is stated here, and the bandwidth, both counts and the standard error belong to every metric.
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

BANDWIDTHS = tuple(10 ** (-1 + step / 9) for step in range(10))  # 0.1 to 1, in equal ratios, of pixels in [0, 1]
VALIDATION = 1000  # images at most
_CHUNK = 1000


def parzen_likelihood(
    samples: Tensor, validation: Tensor, test: Tensor, bandwidths: Sequence[float] = BANDWIDTHS
) -> dict[str, float]:
    """Return ``parzen`` (mean log-likelihood in nats), ``parzen_se``, its standard error, and ``bandwidth``.

    The rule: of ``bandwidths``, that under which the validation images are the most probable.

    Args:
        samples: uint8 (N, C, H, W).
        validation: real images, uint8 (n, C, H, W), neither test images nor what the generator was trained on.
        test: real images, uint8 (m, C, H, W).
        bandwidths: σ to choose from, in units of pixels in [0, 1].
    """
    for name, images in (("samples", samples), ("validation images", validation), ("test images", test)):
        require(
            images.dtype == torch.uint8 and images.shape[1:] == test.shape[1:] and len(images) > 0,
            f"the {name} are {images.dtype} {tuple(images.shape)}: uint8 of {tuple(test.shape[1:])} like the test "
            "images are needed",
        )
    centres = pixels(samples)
    bandwidth = choose_bandwidth(centres, pixels(validation), bandwidths)
    metric = ParzenWindow(centres, bandwidth, sync_on_compute=False).to(samples.device)  # all points are here
    for part in test.split(_CHUNK):
        metric.update(pixels(part))
    return metric.compute() | {"bandwidth": bandwidth}


def validation_and_test(evaluation: Tensor) -> tuple[Tensor, Tensor]:
    """Split evaluation images into those that the bandwidth is chosen on and those that are scored.

    The rule: the first of every five is for validation, but only 1000 of these, evenly spread; all others are scored.
    """
    require(len(evaluation) >= 5, f"{len(evaluation)} evaluation images: a Parzen likelihood needs at least 5")
    places = torch.arange(0, len(evaluation), 5)
    places = places[torch.arange(min(len(places), VALIDATION)) * len(places) // min(len(places), VALIDATION)]
    test = torch.ones(len(evaluation), dtype=torch.bool)
    test[places] = False
    return evaluation[places], evaluation[test]


class ParzenImages:
    """The real images of a Parzen likelihood, uint8 (n, C, H, W) each; read when first needed, and once.

    Where the source holds training images back, the bandwidth is chosen on up to 1000 of these, evenly spread, and
    every evaluation image is scored; otherwise both are evaluation images, parted by ``validation_and_test``.

    Args:
        data: the images.
    """

    def __init__(self, data: ImageDataModule) -> None:
        self.data = data
        self._of_real: dict[int, dict[str, float]] = {}

    @cached_property
    def validation(self) -> Tensor:
        """What the bandwidth is chosen on."""
        if not self.data.chooses:
            return validation_and_test(self._evaluation)[0]
        count = len(self.data.images("validation"))
        return self._read("validation", np.arange(min(count, VALIDATION)) * count // min(count, VALIDATION))

    @cached_property
    def test(self) -> Tensor:
        """What is scored."""
        return self._evaluation if self.data.chooses else validation_and_test(self._evaluation)[1]

    def metrics(self, samples: Tensor) -> dict[str, float]:
        """Return ``parzen_likelihood`` of samples (N, C, H, W), and ``…_of_real`` of as many training images.

        The training images are evenly spread; all of them where there are fewer than samples.
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
        parts = [batch["image"] for batch in self.data.plain(split, frozenset({"image"}), index)]
        return torch.cat(parts) if parts else torch.empty(0, *self.data.spec.image, dtype=torch.uint8)


class ParzenWindow(SumMetric):
    """Mean log-likelihood under Gaussian kernels, over batches and processes.

    Args:
        centres: (N, d), samples.
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
        """Return ``parzen`` and ``parzen_se``, the standard deviation over √n; 0 for one point."""
        mean = self.total / self.count
        variance = (self.squares - self.total * mean).clamp_min(0) / (self.count - 1).clamp_min(1)
        return {"parzen": mean.item(), "parzen_se": (variance / self.count).sqrt().item()}


def choose_bandwidth(centres: Tensor, validation: Tensor, bandwidths: Sequence[float] = BANDWIDTHS) -> float:
    """Return the one of ``bandwidths`` under which ``validation`` (n, d) is the most probable; (N, d) ``centres``."""
    require(bool(bandwidths) and min(bandwidths) > 0, f"bandwidths are positive, not {list(bandwidths)}")
    mean = log_likelihoods(validation, centres, bandwidths).mean(1)
    best = bandwidths[int(mean.argmax())]
    if len(bandwidths) > 1 and best in (min(bandwidths), max(bandwidths)):
        log.warning("the bandwidth %.4g is at the end of its grid: a better one may lie beyond it", best)
    return best


def log_likelihoods(points: Tensor, centres: Tensor, bandwidths: Sequence[float]) -> Tensor:
    """Return log (1/N) Σ_i N(x; c_i, σ² I) of each point, for each σ, float64 (len(bandwidths), n).

    Args:
        points: x (n, d).
        centres: c (N, d).
        bandwidths: σ.
    """
    require(points.shape[1] == centres.shape[1], f"points have {points.shape[1]} dimensions, not {centres.shape[1]}")
    centres, points = (rows.cpu() if rows.device.type == "mps" else rows for rows in (centres, points))
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
    """uint8 (n, C, H, W) -> (n, C·H·W) float64 in [0, 1]."""
    return images.flatten(1).to(torch.float32 if images.device.type == "mps" else torch.float64) / 255
