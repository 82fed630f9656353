"""Kernel distance: the squared maximum mean discrepancy of two sets of features; the KID where they are Inception's."""

import numpy as np
import torch
from torch import Tensor

from rcg_lightning.types import require

SUBSETS, SUBSET_SIZE, SEED = 100, 1000, 2020  # those of torch-fidelity, whose very subsets are drawn


def kernel_distance(
    samples: Tensor, real: Tensor, subsets: int = SUBSETS, size: int = SUBSET_SIZE, seed: int = SEED
) -> tuple[float, float]:
    """Return mean and standard deviation (over n, as in torch-fidelity) over subsets of the unbiased discrepancy.

    The kernel is (x·y / d + 1)³. Each of ``subsets`` draws ``size`` features of either set, without repetition within
    it. Of smaller sets subsets are as large as the smaller one; where that would be the same one every time, it is one
    only. The mean is near 0, below it as often as above, for sets of one distribution, whatever their number.
    Source: Bińkowski et al. 2018.

    Args:
        samples: (n, d) features.
        real: (N, d).
        subsets: number of subsets.
        size: features in each.
        seed: of the draws.
    """
    counts = len(samples), len(real)
    require(min(counts) >= 2, f"a kernel distance needs at least 2 images of either kind, not {min(counts)}")
    require(samples.shape[1] == real.shape[1], "features of different dimensions are no distance apart: one extractor")
    require(subsets > 0 and size > 1, f"{subsets} subsets of {size}: at least one subset of two is needed")
    size = min(size, *counts)
    if size == max(counts):
        subsets = 1
    # numpy's old generator because torch-fidelity draws its subsets by it: only the same ones give the same metric
    draw = np.random.RandomState(seed)
    real = real.to(samples.device)
    found = []
    for _ in range(subsets):
        mine, theirs = (
            rows[torch.from_numpy(draw.choice(len(rows), size, replace=False)).to(rows.device)]
            for rows in (samples, real)
        )
        found.append(discrepancy(mine, theirs))
    return float(np.mean(found)), float(np.std(found))


def discrepancy(x: Tensor, y: Tensor) -> float:
    """Return the unbiased squared maximum mean discrepancy of ``x`` (n, d) and ``y`` (m, d), in float64."""
    x, y = (rows.cpu() if rows.device.type == "mps" else rows for rows in (x, y))
    x, y = x.double(), y.double()
    within = sum(_mean_of_others(_kernel(rows, rows)) for rows in (x, y))
    return float(within - 2 * _kernel(x, y).mean())


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """(n, d), (m, d) -> (n, m)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def _mean_of_others(kernel: Tensor) -> Tensor:
    """Mean of (n, n) without its diagonal."""
    return (kernel.sum() - kernel.trace()) / (len(kernel) * (len(kernel) - 1))
