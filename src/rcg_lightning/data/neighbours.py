"""Nearest neighbours and kNN classification over stored representations: exact, in chunks, on any device."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from rcg_lightning.core.precision import float32_precision
from rcg_lightning.types import require

Metric = Literal["euclidean", "cosine"]
SPARE = 8  # candidates beyond k, so that rounding in the matmul cannot lose a true neighbour
_LANES = 16  # entries of a group in ``lowest``


@dataclass(frozen=True)
class Chunks:
    """How many rows are processed at a time. Memory and time depend on it, results do not.

    Attributes:
        queries: queries for which the bank is read once.
        bank: rows of the bank that are in use at once.
        tile: queries in one matmul with these rows.
        exact: queries whose distances to their candidates are computed at once.
    """

    queries: int = 4096
    bank: int = 16384
    tile: int = 2048
    exact: int = 64


class Bank(Protocol):
    """Rows (N, d) to search: a tensor, or an object that reads rows on demand."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Tensor: ...


# queries (n, d), a count and limits (n, 1) -> scores and indices (n, m): they contain the ``count`` lowest scores of
# each query, as far as these are below its limit
Search = Callable[[Tensor, int, Tensor], tuple[Tensor, Tensor]]
Index = Callable[[Tensor], Search]  # prepared rows (B, d) -> a search among them


class ExactIndex:
    """Searches ``rows`` (B, d) by one matmul; a score is |q - b|² without |q|²."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        self.squares = torch.linalg.vector_norm(rows, dim=1).square()[None]  # (1, B)
        self._buffer = rows.new_empty(0, len(rows))

    def __call__(self, queries: Tensor, count: int, limit: Tensor) -> tuple[Tensor, Tensor]:
        if len(self._buffer) < len(queries):  # reused: new memory costs as much as a selection
            self._buffer = self.rows.new_empty(len(queries), len(self.rows))
        score = torch.addmm(self.squares, queries, self.rows.T, alpha=-2, out=self._buffer[: len(queries)])  # (n, B)
        return lowest(score, min(count, len(self.rows)), limit)


def lowest(score: Tensor, count: int, limit: Tensor) -> tuple[Tensor, Tensor]:
    """Return entries (n, m) of ``score`` (n, B) and their indices in it (n, m); m varies.

    They contain the ``count`` lowest entries of each row, as far as these are below its limit (n, 1). Entries are put
    into groups, and only the groups with the lowest minima are searched. Once the limits come from many rows of the
    bank, few groups are below them.
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


@float32_precision("highest")
def nearest(
    queries: Tensor,
    bank: Bank,
    k: int,
    metric: Metric = "euclidean",
    chunks: Chunks = Chunks(),
    index: Index = ExactIndex,
) -> tuple[Tensor, Tensor]:
    """Return distances (n, k), ascending, and indices (n, k) int64 of the rows of ``bank`` nearest to each query.

    A query that is in the bank finds itself first. Matmuls over chunks of the bank find candidates; their distances
    are then computed again from differences, so that small distances are exact. Equal distances are in the order of
    their indices.

    Args:
        queries: (n, d).
        bank: (N, d), on any device; chunks are moved to the device of the queries.
        metric: ``euclidean`` distance, or ``cosine``: 1 − cosine, in [0, 2].
        chunks: how many rows are in memory at once.
        index: the search index that finds candidates.
    """
    require(0 < k <= len(bank), f"{k} neighbours cannot be found in a bank of {len(bank)}")
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
    found = _candidates(q, parts(), min(k + SPARE, len(bank)), chunks.tile, index)  # (n, k + spare)
    found = found.sort(dim=1).values  # then a stable sort leaves ties in the order of their indices
    squared, order = _squared_distances(q, parts(), found, chunks.exact).sort(dim=1, stable=True)
    squared, found = squared[:, :k], found.gather(1, order)[:, :k]
    return (squared / 2 if metric == "cosine" else squared.sqrt()), found


def _candidates(q: Tensor, parts: Iterable[tuple[int, Tensor]], count: int, tile: int, index: Index) -> Tensor:
    """Return the indices (n, count) of the best scores in the whole bank, unsorted."""
    scores = q.new_full((len(q), count), torch.inf)
    indices = torch.zeros_like(scores, dtype=torch.int64)
    for start, rows in parts:
        search = index(rows)
        for queries, best, best_index in zip(q.split(tile), scores.split(tile), indices.split(tile)):
            score, found = search(queries, count, best.amax(1, keepdim=True))
            better, order = torch.cat([best, score], 1).topk(count, dim=1, largest=False, sorted=False)
            best_index.copy_(torch.cat([best_index, found + start], 1).gather(1, order))
            best.copy_(better)
    return indices


def _squared_distances(q: Tensor, parts: Iterable[tuple[int, Tensor]], index: Tensor, queries: int) -> Tensor:
    """Return |q - b|² (n, count) of the rows ``index`` (n, count) of the bank, of ``queries`` queries at a time."""
    squared = torch.empty_like(index, dtype=torch.float32)
    for start, rows in parts:
        inside = ((index >= start) & (index < start + len(rows))).nonzero()  # (found in this part, 2)
        for query, column in (some.unbind(1) for some in inside.split(queries * index.shape[1])):
            squared[query, column] = rows[index[query, column] - start].sub_(q[query]).square_().sum(1)
    return squared


def knn_accuracy(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    labels: Tensor,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Return the kNN accuracy: the fraction of ``queries`` (n, d) whose ``labels`` (n,) their neighbours predict.

    The k nearest rows of ``bank`` (N, d) by cosine vote for their ``bank_labels`` (N,) with weight
    exp(cosine / temperature), as in instance discrimination (Wu et al. 2018) and DINO, where k = 20 and temperature
    0.07.
    """
    distances, index = nearest(queries, bank, min(k, len(bank)), "cosine")
    weights = ((1 - distances) / temperature).exp()
    votes = weights.new_zeros(len(queries), int(bank_labels.max()) + 1)
    votes.scatter_add_(1, bank_labels.to(index.device)[index], weights)
    return float((votes.argmax(1) == labels.to(votes.device)).float().mean())
