"""k-means over stored representations: exact, on any device, the same for the same seed."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rcg_lightning.core.precision import float32_precision
from rcg_lightning.types import require


@dataclass(frozen=True)
class Clusters:
    """The result of ``kmeans``: ``centroids`` (k, d) float32, ``assignment`` (N,) int64, ``inertia`` Σ distance²."""

    centroids: Tensor
    assignment: Tensor
    inertia: float


@float32_precision("highest")
def kmeans(points: Tensor, k: int, seed: int = 0, restarts: int = 1, iterations: int = 100) -> Clusters:
    """Cluster ``points`` (N, d) into ``k``: k-means++ and Lloyd's iterations, the best of some restarts.

    The same seed gives the same result on the same type of device. An empty cluster takes the point that is farthest
    from its centroid.
    """
    require(0 < k <= len(points), f"{k} clusters were asked for of {len(points)} points: choose fewer clusters")
    require(restarts > 0 and iterations > 0, "restarts and iterations are at least 1")
    points = points.float()
    runs = [_lloyd(points, _first_centroids(points, k, seed + 7919 * run), iterations) for run in range(restarts)]
    return min(runs, key=lambda run: run.inertia)


@float32_precision("highest")
def assign(points: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the squared distance (N,) from ``points`` to the nearest of ``centroids`` (k, d), and its index (N,)."""
    squared, assignment = [], []
    for part in points.float().split(16384):
        score = torch.addmm(centroids.square().sum(1)[None], part, centroids.T, alpha=-2)
        lowest, index = score.min(dim=1)
        squared.append((lowest + part.square().sum(1)).clamp_min(0))
        assignment.append(index)
    return torch.cat(squared), torch.cat(assignment)


def _first_centroids(points: Tensor, k: int, seed: int) -> Tensor:
    """Choose k points as first centroids, far from each other (k-means++, Arthur & Vassilvitskii 2007)."""
    generator = torch.Generator().manual_seed(seed)
    first = int(torch.randint(len(points), (), generator=generator))
    chosen = [first]
    squared = (points - points[first]).square().sum(1)
    for _ in range(k - 1):
        total = squared.cpu().double().cumsum(0)  # multinomial stops at 2^24 categories, and MPS has no float64
        u = torch.rand((), generator=generator, dtype=torch.float64).item() * total[-1].item()
        index = min(int(torch.searchsorted(total, u, right=True)), len(points) - 1)
        chosen.append(index)
        squared = torch.minimum(squared, (points - points[index]).square().sum(1))
    return points[chosen].clone()


def _lloyd(points: Tensor, centroids: Tensor, iterations: int) -> Clusters:
    k = len(centroids)
    squared, assignment = assign(points, centroids)
    for _ in range(iterations):
        sums = torch.zeros_like(centroids).index_add_(0, assignment, points)
        counts = torch.bincount(assignment, minlength=k)
        centroids = sums / counts.clamp_min(1)[:, None]
        empty = (counts == 0).nonzero().flatten()
        if len(empty):
            centroids[empty] = points[squared.topk(len(empty)).indices]
        previous = assignment
        squared, assignment = assign(points, centroids)
        if torch.equal(previous, assignment):
            break
    return Clusters(centroids, assignment, float(squared.cpu().double().sum()))
