"""Nearest neighbours, k-means and kNN classification over stored representations: exact, in chunks, on any device."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from rcg_lightning.types import require

Metric = Literal["euclidean", "cosine"]
_SPARE = 8  # candidates beyond k, so that rounding in the matrix product cannot lose a true neighbour


def nearest(
    queries: Tensor, bank: Tensor, k: int, metric: Metric = "euclidean", chunk: int = 16384
) -> tuple[Tensor, Tensor]:
    """Return distances (n, k), ascending, and indices (n, k) int64 of the rows of ``bank`` nearest to each query.

    A query that is in the bank finds itself first. Candidates come from matrix products of ``chunk`` rows at a time;
    their distances are then computed again from differences, so that small ones are exact. Equal distances are in the
    order of their indices.

    Args:
        queries: (n, d).
        bank: (N, d), on any device; chunks are moved to the queries'.
        metric: ``euclidean`` distance, or ``cosine``: 1 − cosine, in [0, 2].
    """
    require(0 < k <= len(bank), f"{k} neighbours were asked for in a bank of {len(bank)}")
    require(queries.shape[1:] == bank.shape[1:], f"queries {tuple(queries.shape)} and bank {tuple(bank.shape)} differ")
    require(metric in ("euclidean", "cosine"), f"the metric is euclidean or cosine, not {metric}")
    found = [_nearest(part, bank, k, metric, chunk) for part in queries.split(4096)]
    if not found:
        return queries.new_zeros(0, k, dtype=torch.float32), queries.new_zeros(0, k, dtype=torch.int64)
    distances, indices = zip(*found)
    return torch.cat(distances), torch.cat(indices)


def _nearest(queries: Tensor, bank: Tensor, k: int, metric: Metric, chunk: int) -> tuple[Tensor, Tensor]:
    centre = bank[: min(len(bank), 4096)].to(queries.device).float().mean(0)  # less cancellation in |q|² − 2qb + |b|²

    def prepared(rows: Tensor) -> Tensor:
        rows = rows.to(queries.device).float()
        return F.normalize(rows, dim=-1) if metric == "cosine" else rows - centre

    q = prepared(queries)
    best = queries.new_empty(len(q), 0, dtype=torch.float32)
    index = queries.new_empty(len(q), 0, dtype=torch.int64)
    for start in range(0, len(bank), chunk):
        b = prepared(bank[start : start + chunk])
        score = torch.addmm(b.square().sum(1)[None], q, b.T, alpha=-2)  # (n, chunk), |q - b|² without |q|²
        some, place = score.topk(min(k + _SPARE, score.shape[1]), dim=1, largest=False)
        best = torch.cat([best, some], 1)
        index = torch.cat([index, place + start], 1)
        best, kept = best.topk(min(k + _SPARE, best.shape[1]), dim=1, largest=False)
        index = index.gather(1, kept)
    index = index.sort(dim=1).values  # then a stable sort leaves ties in the order of their indices
    squared = torch.cat(
        [
            (prepared(bank[i.to(bank.device)]) - some[:, None]).square().sum(2)
            for some, i in zip(q.split(64), index.split(64))
        ]
    )  # (n, k + spare)
    squared, order = squared.sort(dim=1, stable=True)
    squared, index = squared[:, :k], index.gather(1, order)[:, :k]
    return (squared / 2 if metric == "cosine" else squared.sqrt()), index


@dataclass(frozen=True)
class Clusters:
    """Result of ``kmeans``: ``centroids`` (k, d) float32, ``assignment`` (N,) int64, ``inertia`` Σ squared distance."""

    centroids: Tensor
    assignment: Tensor
    inertia: float


def kmeans(points: Tensor, k: int, seed: int = 0, restarts: int = 1, iterations: int = 100) -> Clusters:
    """Cluster ``points`` (N, d) into ``k``: k-means++ and Lloyd's iterations, the best of some restarts.

    The same result for the same seed on one kind of device. A cluster that runs empty takes the point that is farthest
    from its centroid.
    """
    require(0 < k <= len(points), f"{k} clusters were asked for of {len(points)} points: choose fewer clusters")
    require(restarts > 0 and iterations > 0, "restarts and iterations are at least 1")
    points = points.float()
    runs = [_lloyd(points, _spread(points, k, seed + 7919 * run), iterations) for run in range(restarts)]
    return min(runs, key=lambda run: run.inertia)


def assign(points: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the squared distance (N,) to the nearest of ``centroids`` (k, d), and its number (N,)."""
    squared, number = [], []
    for part in points.float().split(16384):
        score = torch.addmm(centroids.square().sum(1)[None], part, centroids.T, alpha=-2)
        low, place = score.min(dim=1)
        squared.append((low + part.square().sum(1)).clamp_min(0))
        number.append(place)
    return torch.cat(squared), torch.cat(number)


def _spread(points: Tensor, k: int, seed: int) -> Tensor:
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
    squared, number = assign(points, centroids)
    for _ in range(iterations):
        sums = torch.zeros_like(centroids).index_add_(0, number, points)
        counts = torch.bincount(number, minlength=k)
        centroids = sums / counts.clamp_min(1)[:, None]
        empty = (counts == 0).nonzero().flatten()
        if len(empty):
            centroids[empty] = points[squared.topk(len(empty)).indices]
        previous = number
        squared, number = assign(points, centroids)
        if torch.equal(previous, number):
            break
    return Clusters(centroids, number, float(squared.cpu().double().sum()))


def knn_accuracy(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    labels: Tensor,
    k: int = 20,
    temperature: float = 0.07,
    chunk: int = 16384,
) -> float:
    """Return the share of ``queries`` (n, d) whose ``labels`` (n,) their neighbours in ``bank`` (N, d) predict.

    The k nearest by cosine vote with weight exp(cosine / temperature), as in instance discrimination (Wu et al. 2018)
    and DINO, where k = 20 and temperature 0.07.
    """
    distances, index = nearest(queries, bank, min(k, len(bank)), "cosine", chunk)
    weights = ((1 - distances) / temperature).exp()
    votes = weights.new_zeros(len(queries), int(bank_labels.max()) + 1)
    votes.scatter_add_(1, bank_labels.to(index.device)[index], weights)
    return float((votes.argmax(1) == labels.to(votes.device)).float().mean())
