"""Fréchet distance between two sets of features, in float64 (FID if the features are Inception's).

For Gaussians with means m and covariances S = A Aᵀ it is |m₁ − m₂|² + tr S₁ + tr S₂ − 2 tr (S₁ S₂)^½. The last trace
is the sum of the singular values of A₁ᵀA₂. Singular values are exact up to the rounding of the largest one. The square
root of the eigenvalues of S₁ S₂ would turn a rounding error of 1e-16 into 1e-8, in each of thousands of dimensions.
"""

import torch
from torch import Tensor


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean (d,) and the unbiased covariance (d, d), float64, of ``features`` (N, d), N at least 2."""
    features = _double(features)
    mean = features.mean(dim=0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)


def moments_from_sums(count: int, total: Tensor, outer: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and unbiased covariance from Σ x (d,) and Σ x xᵀ (d, d) over ``count`` vectors, all float64."""
    mean = total / count
    return mean, (outer - torch.outer(total, mean)) / (count - 1)


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> Tensor:
    """Return the Fréchet distance, a float64 scalar, of two Gaussians: means (d,), covariances (d, d).

    Covariances may be singular (fewer samples than dimensions, dead features). Symmetric up to rounding.
    """
    mean1, cov1, mean2, cov2 = (_double(value) for value in (mean1, cov1, mean2, cov2))
    cross = torch.linalg.svdvals(_factor(cov1).T @ _factor(cov2)).sum()
    distance = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * cross
    return distance.clamp_min(0)  # rounding can make the distance of equal sets slightly negative


def _factor(cov: Tensor) -> Tensor:
    """Return A (d, r) with A Aᵀ = ``cov``: its Cholesky factor if positive definite, else from its eigenvectors."""
    cov = (cov + cov.T) / 2
    lower, failed = torch.linalg.cholesky_ex(cov)
    if not failed:
        return lower
    values, vectors = torch.linalg.eigh(cov)
    # smaller eigenvalues are zeros plus rounding; their square roots would add up to 1e-7 of the result
    nonzero = values > values[-1].clamp_min(0) * torch.finfo(cov.dtype).eps * len(cov) ** 0.5
    return vectors[:, nonzero] * values[nonzero].sqrt()


def _double(value: Tensor) -> Tensor:
    """Return ``value`` in float64, on the CPU if its device has no float64."""
    value = value.detach()
    return (value.cpu() if value.device.type == "mps" else value).double()
