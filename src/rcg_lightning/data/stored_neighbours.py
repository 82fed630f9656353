"""Nearest neighbours among the representations of a store, in as much memory as is allowed; and a store of them."""

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

_LEAST = Chunks(queries=16, bank=1024, tile=16, exact=1)  # fewer at a time would take for ever
_MOST = Chunks(queries=16384, bank=65536, tile=2048, exact=1024)  # more at a time is not faster
_PRODUCTS = 2**25  # entries of a matmul, likewise


class StoredRows:
    """View 0 of a store's column of vectors (d), as (N, d), read when asked for.

    Files are mapped again for each reading: what has been read counts as this process's memory for no longer.
    """

    def __init__(self, store: Store, column: str = "representation") -> None:
        self.store, self.column = store, column
        self.shape = (store.size, *store.columns[column]["shape"])
        require(len(self.shape) == 2, f"{column} of {store.path} has shape {self.shape[1:]}: neighbours are of vectors")

    def __len__(self) -> int:
        return self.store.size

    def __getitem__(self, rows: slice) -> Tensor:
        index = np.arange(*rows.indices(self.store.size))
        return torch.from_numpy(copy.copy(self.store).read(self.column, index))


class StoredNeighbours:
    """The neighbours by cosine of a store's representations among themselves.

    Args:
        store: with a column ``representation``.
        k: neighbours of each, itself included.
        memory: bytes that may be used at a time, beyond what the program takes by itself; from a few megabytes on
            everything works, and more is faster until the representations fit into half of it.
        device: where products are computed.
        index: how candidates are found.

    Raises:
        UserError: there are too few representations, or too little memory.
    """

    def __init__(self, store: Store, k: int, memory: int, device: torch.device, index: Index = ExactIndex) -> None:
        rows = StoredRows(store)
        require(
            0 < k <= len(rows),
            f"{k} neighbours were asked for, and {store.path} holds {len(rows)} images: choose k from 1 to that",
        )
        self.k, self.device, self.index = k, device, index
        kept = np.dtype(store.columns[rows.column]["dtype"]).itemsize * len(rows) * rows.shape[1]
        fits = memory - kept >= max(kept, least_bytes(len(rows), rows.shape[1], k))
        self.chunks = within(memory - kept * fits, len(rows), rows.shape[1], k)
        self.rows = rows
        self.bank: Bank = self._loaded() if fits else rows

    def write(self, out: Path) -> None:
        """Write a store with a column ``neighbours`` (k,); where the same one was begun, it is continued."""
        source = self.rows.store
        encoder = source.identity.get("representation")
        fixed = {name: source.identity[name] for name in ("dataset", "split", "transform")}
        writer = StoreWriter(out, source.size, 1, source.shard_rows, {**fixed, "neighbours": f"{encoder}/k{self.k}"})
        collector = ShardCollector(writer)
        parts = [part for shard in writer.pending() for part in self.parts(shard)]
        for start, stop in tqdm(parts, "neighbours", delay=3, leave=False):
            rows = np.arange(start, stop)
            collector.add(rows, np.zeros_like(rows), {"neighbours": self.of(start, stop)})
        writer.finish({"neighbours": {"representation": encoder}})

    def parts(self, shard: Shard) -> list[tuple[int, int]]:
        """Cut a shard into parts, start and stop, whose neighbours are looked for together."""
        starts = range(shard.start, shard.stop, self.chunks.queries)
        return [(start, min(start + self.chunks.queries, shard.stop)) for start in starts]

    def of(self, start: int, stop: int) -> np.ndarray:
        """Return the neighbours (n, k) int32 of rows ``start`` to ``stop`` (not included): nearest first."""
        queries = self.rows[start:stop].to(self.device)
        index = nearest(queries, self.bank, self.k, "cosine", self.chunks, self.index)[1]
        return itself_first(index.cpu().numpy(), np.arange(start, stop)).astype(np.int32)

    def _loaded(self) -> Tensor:
        bank = torch.empty(self.rows.shape, dtype=self.rows[:1].dtype, device=self.device)
        for start in range(0, len(bank), self.chunks.bank):
            bank[start : start + self.chunks.bank] = self.rows[start : start + self.chunks.bank]
        return bank


def within(memory: int, size: int, dim: int, k: int) -> Chunks:
    """Return how many rows at a time keep a search among ``size`` rows of ``dim`` numbers within ``memory`` bytes.

    Raises:
        UserError: not even a few rows at a time do.
    """
    least = least_bytes(size, dim, k)
    require(
        memory >= least,
        f"{memory / 1e6:.3g} MB are too little memory for {k} neighbours of {dim} numbers: give {least / 1e6:.3g} MB",
    )
    part = memory // 4
    query, row, again = _bytes_each(size, dim, k)
    bank = min(_MOST.bank, size, part // row)
    return Chunks(
        queries=min(_MOST.queries, part // query),
        bank=bank,
        tile=min(_MOST.tile, max(_PRODUCTS // bank, _LEAST.tile), part // _bytes_of_products(bank, size, k)),
        exact=min(_MOST.exact, part // again),
    )


def least_bytes(size: int, dim: int, k: int) -> int:
    """Return the least memory that ``within`` takes."""
    query, row, again = _bytes_each(size, dim, k)
    bank = min(_LEAST.bank, size)
    tile = _LEAST.tile * _bytes_of_products(bank, size, k)
    return 4 * max(_LEAST.queries * query, bank * row, tile, _LEAST.exact * again)


def _bytes_each(size: int, dim: int, k: int) -> tuple[int, int, int]:
    """Return the bytes for each query, each row of the bank, and each query whose distances are computed again."""
    count = min(k + SPARE, size)
    query = 12 * dim + 100 * count  # as stored, as float32 and of length one; its candidates
    row = 20 * dim  # in the file, as stored, as float32, of length one, and in an index
    return query, row, 8 * dim * count


def _bytes_of_products(bank: int, size: int, k: int) -> int:
    """Return the bytes for each query's products with ``bank`` rows: themselves, minima, what is left of them."""
    return 4 * bank + bank // 2 + 180 * min(k + SPARE, size)


def itself_first(index: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return neighbours ``index`` (n, k) of ``rows`` (n,) with each row itself in front, the others in their order.

    A row of which there are more than k copies may not be among its neighbours: it takes the last one's place.
    """
    index, own = index.copy(), rows[:, None]
    absent = (index != own).all(axis=1)
    index[absent, -1] = rows[absent]
    return np.take_along_axis(index, np.argsort(index != own, axis=1, kind="stable"), axis=1)


class FaissIndex:
    """Finds candidates among ``rows`` (B, d) of length one, on the CPU, by their inner products in faiss."""

    def __init__(self, rows: Tensor) -> None:
        faiss = faiss_module()
        faiss.omp_set_num_threads(torch.get_num_threads())
        self.found = faiss.IndexFlatIP(rows.shape[1])
        self.found.add(rows.numpy())

    def __call__(self, queries: Tensor, count: int, limit: Tensor) -> tuple[Tensor, Tensor]:
        products, places = self.found.search(queries.numpy(), min(count, self.found.ntotal))
        return -torch.from_numpy(products), torch.from_numpy(places)


def faiss_module() -> Any:
    """Import faiss; UserError where it is not installed."""
    try:
        return importlib.import_module("faiss")
    except ImportError as error:
        raise UserError("faiss is not installed: pip install 'rcg-lightning[faiss]', or leave --index exact") from error
