"""Nearest neighbours among the representations of a store, within a limit of memory, and a store of them."""

import copy
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from rcg_lightning.data.neighbours import SPARE, Bank, Chunks, ExactIndex, Index, nearest
from rcg_lightning.data.shards import Shard
from rcg_lightning.data.store import Store
from rcg_lightning.data.store_writer import ShardCollector, StoreWriter
from rcg_lightning.errors import UserError
from rcg_lightning.types import require

_SMALLEST = Chunks(queries=16, bank=1024, tile=16, exact=1)  # smaller chunks would take too long
_LARGEST = Chunks(queries=16384, bank=65536, tile=2048, exact=1024)  # larger chunks are not faster
_MATMUL_ENTRIES = 2**25  # of one matmul; more are not faster


class StoredRows:
    """View 0 of a store's column of vectors (d), as rows (N, d) that are read on demand.

    Each read maps the files again, so the rows that were read do not stay in this process's memory.
    """

    def __init__(self, store: Store, column: str = "representation") -> None:
        self.store, self.column = store, column
        self.shape = (store.size, *store.columns[column]["shape"])
        require(len(self.shape) == 2, f"{column} of {store.path} has shape {self.shape[1:]}: neighbours need vectors")

    def __len__(self) -> int:
        return self.store.size

    def __getitem__(self, rows: slice) -> Tensor:
        index = np.arange(*rows.indices(self.store.size))
        return torch.from_numpy(copy.copy(self.store).read(self.column, index))


class StoredNeighbours:
    """The nearest neighbours, by cosine, of a store's representations among themselves.

    Args:
        store: a store with a column ``representation``.
        k: number of neighbours of each row, itself included.
        memory: bytes that the search may use, in addition to the program itself. A few megabytes are enough; more is
            faster, until the representations fit into half of it.
        device: device of the matmuls.
        index: the search index that finds candidates.

    Raises:
        UserError: there are too few representations, or too little memory.
    """

    def __init__(self, store: Store, k: int, memory: int, device: torch.device, index: Index = ExactIndex) -> None:
        rows = StoredRows(store)
        require(
            0 < k <= len(rows),
            f"{k} neighbours were asked for, but {store.path} holds {len(rows)} images: choose k from 1 to {len(rows)}",
        )
        self.k, self.device, self.index = k, device, index
        loaded = np.dtype(store.columns[rows.column]["dtype"]).itemsize * len(rows) * rows.shape[1]
        fits = memory - loaded >= max(loaded, min_bytes(len(rows), rows.shape[1], k))
        self.chunks = chunks_within(memory - loaded * fits, len(rows), rows.shape[1], k)
        self.rows = rows
        self.bank: Bank = self._load() if fits else rows

    def write(self, out: Path) -> None:
        """Write a store with a column ``neighbours`` (k,), or continue the same store."""
        source = self.rows.store
        encoder = source.identity.get("representation")
        fixed = {name: source.identity[name] for name in ("dataset", "split", "transform")}
        writer = StoreWriter(out, source.size, 1, source.shard_rows, {**fixed, "neighbours": f"{encoder}/k{self.k}"})
        collector = ShardCollector(writer)
        parts = [part for shard in writer.pending() for part in self.parts(shard)]
        for start, stop in tqdm(parts, "neighbours", delay=3, leave=False):
            rows = np.arange(start, stop)
            collector.add(rows, np.zeros_like(rows), {"neighbours": self.find(start, stop)})
        writer.finish({"neighbours": {"representation": encoder}})

    def parts(self, shard: Shard) -> list[tuple[int, int]]:
        """Cut a shard into parts (start, stop) that are searched together."""
        starts = range(shard.start, shard.stop, self.chunks.queries)
        return [(start, min(start + self.chunks.queries, shard.stop)) for start in starts]

    def find(self, start: int, stop: int) -> np.ndarray:
        """Return the neighbours (n, k) int32, nearest first, of the rows from ``start`` to ``stop`` (not included)."""
        queries = self.rows[start:stop].to(self.device)
        index = nearest(queries, self.bank, self.k, "cosine", self.chunks, self.index)[1]
        return itself_first(index.cpu().numpy(), np.arange(start, stop)).astype(np.int32)

    def _load(self) -> Tensor:
        bank = torch.empty(self.rows.shape, dtype=self.rows[:1].dtype, device=self.device)
        for start in range(0, len(bank), self.chunks.bank):
            bank[start : start + self.chunks.bank] = self.rows[start : start + self.chunks.bank]
        return bank


def chunks_within(memory: int, size: int, dim: int, k: int) -> Chunks:
    """Return the chunks with which a search among ``size`` rows of ``dim`` dimensions fits into ``memory`` bytes.

    Raises:
        UserError: even the smallest chunks do not fit.
    """
    needed = min_bytes(size, dim, k)
    require(
        memory >= needed,
        f"{memory / 1e6:.3g} MB are too little memory for {k} neighbours in {dim} dimensions: "
        f"give {needed / 1e6:.3g} MB",
    )
    part = memory // 4
    query, row, again = _bytes_each(size, dim, k)
    bank = min(_LARGEST.bank, size, part // row)
    return Chunks(
        queries=min(_LARGEST.queries, part // query),
        bank=bank,
        tile=min(_LARGEST.tile, max(_MATMUL_ENTRIES // bank, _SMALLEST.tile), part // _matmul_bytes(bank, size, k)),
        exact=min(_LARGEST.exact, part // again),
    )


def min_bytes(size: int, dim: int, k: int) -> int:
    """Return the smallest memory with which ``chunks_within`` works."""
    query, row, again = _bytes_each(size, dim, k)
    bank = min(_SMALLEST.bank, size)
    tile = _SMALLEST.tile * _matmul_bytes(bank, size, k)
    return 4 * max(_SMALLEST.queries * query, bank * row, tile, _SMALLEST.exact * again)


def _bytes_each(size: int, dim: int, k: int) -> tuple[int, int, int]:
    """Return the bytes of one query, of one row of the bank, and of one query whose distances are computed again."""
    count = min(k + SPARE, size)
    query = 12 * dim + 100 * count  # as stored, as float32 and normalised; its candidates
    row = 20 * dim  # in the file, as stored, as float32, normalised, and in an index
    return query, row, 8 * dim * count


def _matmul_bytes(bank: int, size: int, k: int) -> int:
    """Return the bytes of one query's matmul with ``bank`` rows: its scores, their minima, and the selected ones."""
    return 4 * bank + bank // 2 + 180 * min(k + SPARE, size)


def itself_first(index: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Move each of ``rows`` (n,) to the front of its neighbours ``index`` (n, k); the others keep their order.

    A row with more than k copies may not be among its neighbours: then it replaces the last one.
    """
    index, own = index.copy(), rows[:, None]
    absent = (index != own).all(axis=1)
    index[absent, -1] = rows[absent]
    return np.take_along_axis(index, np.argsort(index != own, axis=1, kind="stable"), axis=1)


class FaissIndex:
    """Searches ``rows`` (B, d) of length one by their inner products, in faiss on the CPU."""

    def __init__(self, rows: Tensor) -> None:
        faiss = faiss_module()
        faiss.omp_set_num_threads(torch.get_num_threads())
        self.index = faiss.IndexFlatIP(rows.shape[1])
        self.index.add(rows.numpy())

    def __call__(self, queries: Tensor, count: int, limit: Tensor) -> tuple[Tensor, Tensor]:
        products, indices = self.index.search(queries.numpy(), min(count, self.index.ntotal))
        return -torch.from_numpy(products), torch.from_numpy(indices)


def faiss_module() -> Any:
    """Import faiss, or raise a UserError where it is not installed."""
    try:
        return importlib.import_module("faiss")
    except ImportError as error:
        raise UserError("faiss is not installed: pip install 'rcg-lightning[faiss]', or leave --index exact") from error
