"""The kernel distance of two sets of features: the squared maximum mean discrepancy; with Inception's it is the KID."""

import numpy as np
import torch
from torch import Tensor

from rcg_lightning.types import require

SUBSETS, SUBSET_SIZE, SEED = 100, 1000, 2020  # as in torch-fidelity, so that the subsets are the same


def kid(
    samples: Tensor, real: Tensor, subsets: int = SUBSETS, size: int = SUBSET_SIZE, seed: int = SEED
) -> tuple[float, float]:
    """Return mean and standard deviation of the unbiased discrepancy over random subsets.

    The standard deviation is over n, as in torch-fidelity. The kernel is (x·y / d + 1)³. Each subset holds ``size``
    features of both sets, without repetition, or as many as the smaller set has; if that is all features of both, there
    is one subset only. For two sets of the same distribution the mean is near 0, above or below, for any number of
    features. Source: Bińkowski et al. 2018.

    Args:
        samples: (n, d) features.
        real: (N, d).
        subsets: number of subsets.
        size: number of features in each.
        seed: of the subsets.
    """
    counts = len(samples), len(real)
    require(min(counts) >= 2, f"a kernel distance needs at least 2 images of both sets, not {min(counts)}")
    require(samples.shape[1] == real.shape[1], "features of different dimensions cannot be compared: use one extractor")
    require(subsets > 0 and size > 1, f"{subsets} subsets of {size}: at least one subset of two is needed")
    size = min(size, *counts)
    if size == max(counts):
        subsets = 1
    # numpy's old generator, as in torch-fidelity: only the same subsets give the same metric
    generator = np.random.RandomState(seed)
    real = real.to(samples.device)
    found = []
    for _ in range(subsets):
        x, y = (
            features[torch.from_numpy(generator.choice(len(features), size, replace=False)).to(features.device)]
            for features in (samples, real)
        )
        found.append(discrepancy(x, y))
    return float(np.mean(found)), float(np.std(found))


def discrepancy(x: Tensor, y: Tensor) -> float:
    """Return the unbiased squared maximum mean discrepancy of ``x`` (n, d) and ``y`` (m, d), in float64."""
    x, y = (features.cpu() if features.device.type == "mps" else features for features in (x, y))
    x, y = x.double(), y.double()
    within = sum(_mean_of_others(_kernel(features, features)) for features in (x, y))
    return float(within - 2 * _kernel(x, y).mean())


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """Return the kernel (n, m) of x (n, d) and y (m, d)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def _mean_of_others(kernel: Tensor) -> Tensor:
    """Return the mean of (n, n) without its diagonal."""
    return (kernel.sum() - kernel.trace()) / (len(kernel) * (len(kernel) - 1))
