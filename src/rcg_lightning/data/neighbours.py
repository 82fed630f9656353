"""Nearest neighbours, k-means and kNN classification over stored representations: exact, in chunks, on any device."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from rcg_lightning.types import require

Metric = Literal["euclidean", "cosine"]
SPARE = 8  # candidates beyond k, so that rounding in the matmul cannot lose a true neighbour
_LANES = 16  # entries of a group in ``lowest``


@dataclass(frozen=True)
class Chunks:
    """How many rows are dealt with at a time; memory and time depend on it, results do not.

    Attributes:
        queries: for so many the bank is read once.
        bank: rows of the bank that are in use at once.
        tile: queries whose products with these rows are there at once.
        exact: queries whose distances to their candidates are computed at once.
    """

    queries: int = 4096
    bank: int = 16384
    tile: int = 2048
    exact: int = 64


class Bank(Protocol):
    """Rows (N, d) to search among: a tensor, or what is read when it is asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Tensor: ...


# queries (n, d), a count and limits (n, 1) -> scores and places (n, m): the ``count`` lowest scores of each query are
# among them, as far as they are below its limit
Search = Callable[[Tensor, int, Tensor], tuple[Tensor, Tensor]]
Index = Callable[[Tensor], Search]  # prepared rows (B, d) -> what searches them


class ExactIndex:
    """Searches ``rows`` (B, d) by one matmul; a score is |q - b|² without |q|²."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        self.squares = torch.linalg.vector_norm(rows, dim=1).square()[None]  # (1, B)
        self._room = rows.new_empty(0, len(rows))

    def __call__(self, queries: Tensor, count: int, limit: Tensor) -> tuple[Tensor, Tensor]:
        if len(self._room) < len(queries):
            self._room = self.rows.new_empty(len(queries), len(self.rows))  # new memory costs as much as a selection
        score = torch.addmm(self.squares, queries, self.rows.T, alpha=-2, out=self._room[: len(queries)])  # (n, B)
        return lowest(score, min(count, len(self.rows)), limit)


def lowest(score: Tensor, count: int, limit: Tensor) -> tuple[Tensor, Tensor]:
    """Return entries (n, m) of ``score`` (n, B) and their places; m varies.

    Among them are the ``count`` lowest of each row, as far as they are below its limit (n, 1). Entries are put into
    groups, of which those count whose minima are lowest; few are below a limit that many rows have set already.
    """
    width = score.shape[1] // _LANES
    grid = score[:, : width * _LANES].unflatten(1, (_LANES, width))  # (n, lanes, width), a group is a column
    minima = grid.amin(1)
    groups = min(count, int((minima < limit).sum(1).max())) if width else 0
    if 4 * groups >= width:
        return score.topk(count, dim=1, largest=False, sorted=False)
    group = minima.topk(groups, dim=1, largest=False, sorted=False).indices[:, None]  # (n, 1, groups)
    lane = torch.arange(0, width * _LANES, width, device=score.device)[:, None]
    some = grid.gather(2, group.expand(-1, _LANES, -1)).flatten(1)  # (n, lanes · groups)
    beyond = torch.arange(width * _LANES, score.shape[1], device=score.device).expand(len(score), -1)
    return torch.cat([some, score.gather(1, beyond)], 1), torch.cat([(group + lane).flatten(1), beyond], 1)


def nearest(
    queries: Tensor,
    bank: Bank,
    k: int,
    metric: Metric = "euclidean",
    chunks: Chunks = Chunks(),
    index: Index = ExactIndex,
) -> tuple[Tensor, Tensor]:
    """Return distances (n, k), ascending, and indices (n, k) int64 of the rows of ``bank`` nearest to each query.

    A query that is in the bank finds itself first. Candidates come from matmuls of a chunk of rows at a time;
    their distances are then computed again from differences, so that small ones are exact. Equal distances are in the
    order of their indices.

    Args:
        queries: (n, d).
        bank: (N, d), on any device; chunks are moved to the queries'.
        metric: ``euclidean`` distance, or ``cosine``: 1 − cosine, in [0, 2].
        chunks: how many rows are in memory at once.
        index: what finds candidates.
    """
    require(0 < k <= len(bank), f"{k} neighbours were asked for in a bank of {len(bank)}")
    require(queries.shape[1:] == bank.shape[1:], f"queries {tuple(queries.shape)} and bank {tuple(bank.shape)} differ")
    require(metric in ("euclidean", "cosine"), f"the metric is euclidean or cosine, not {metric}")
    found = [_nearest(part, bank, k, metric, chunks, index) for part in queries.split(chunks.queries)]
    if not found:
        return queries.new_zeros(0, k, dtype=torch.float32), queries.new_zeros(0, k, dtype=torch.int64)
    distances, indices = zip(*found)
    return torch.cat(distances), torch.cat(indices)


@torch.no_grad()
def _nearest(
    queries: Tensor, bank: Bank, k: int, metric: Metric, chunks: Chunks, index: Index
) -> tuple[Tensor, Tensor]:
    if metric == "cosine":
        centre = queries.new_zeros((), dtype=torch.float32)
    else:  # less cancellation in |q|² − 2qb + |b|²
        centre = bank[: min(len(bank), 4096)].to(queries.device).float().mean(0)

    def prepared(rows: Tensor) -> Tensor:
        rows = rows.to(queries.device).float()
        return F.normalize(rows, dim=-1) if metric == "cosine" else rows - centre

    def parts() -> Iterator[tuple[int, Tensor]]:
        for start in range(0, len(bank), chunks.bank):
            yield start, prepared(bank[start : start + chunks.bank])

    q = prepared(queries)
    place = _candidates(q, parts(), min(k + SPARE, len(bank)), chunks.tile, index)  # (n, k + spare)
    place = place.sort(dim=1).values  # then a stable sort leaves ties in the order of their indices
    squared, order = _squared_distances(q, parts(), place, chunks.exact).sort(dim=1, stable=True)
    squared, place = squared[:, :k], place.gather(1, order)[:, :k]
    return (squared / 2 if metric == "cosine" else squared.sqrt()), place


def _candidates(q: Tensor, parts: Iterable[tuple[int, Tensor]], count: int, tile: int, index: Index) -> Tensor:
    """Return the indices (n, count) of the best scores in the whole bank, in no order."""
    best = q.new_full((len(q), count), torch.inf)
    place = torch.zeros_like(best, dtype=torch.int64)
    for start, rows in parts:
        search = index(rows)
        for some, low, kept in zip(q.split(tile), best.split(tile), place.split(tile)):
            score, found = search(some, count, low.amax(1, keepdim=True))
            better, order = torch.cat([low, score], 1).topk(count, dim=1, largest=False, sorted=False)
            kept.copy_(torch.cat([kept, found + start], 1).gather(1, order))
            low.copy_(better)
    return place


def _squared_distances(q: Tensor, parts: Iterable[tuple[int, Tensor]], place: Tensor, queries: int) -> Tensor:
    """Return |q - b|² (n, count) of rows ``place`` of the bank, those of some ``queries`` at a time."""
    squared = torch.empty_like(place, dtype=torch.float32)
    for start, rows in parts:
        inside = ((place >= start) & (place < start + len(rows))).nonzero()  # (found in this part, 2)
        for row, column in (some.unbind(1) for some in inside.split(queries * place.shape[1])):
            squared[row, column] = rows[place[row, column] - start].sub_(q[row]).square_().sum(1)
    return squared


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
) -> float:
    """Return the share of ``queries`` (n, d) whose ``labels`` (n,) their neighbours in ``bank`` (N, d) predict.

    The k nearest by cosine vote with weight exp(cosine / temperature), as in instance discrimination (Wu et al. 2018)
    and DINO, where k = 20 and temperature 0.07.
    """
    distances, index = nearest(queries, bank, min(k, len(bank)), "cosine")
    weights = ((1 - distances) / temperature).exp()
    votes = weights.new_zeros(len(queries), int(bank_labels.max()) + 1)
    votes.scatter_add_(1, bank_labels.to(index.device)[index], weights)
    return float((votes.argmax(1) == labels.to(votes.device)).float().mean())
