"""Workload between stages 1 and 3: nearest neighbours of instances among stored representations."""

import tempfile
from pathlib import Path

import numpy as np
import torch

from rcg_lightning.bench.execution import Execution
from rcg_lightning.bench.workload import Variants, Workload
from rcg_lightning.data.neighbours import ExactIndex
from rcg_lightning.data.store import Store
from rcg_lightning.data.store_writer import StoreWriter
from rcg_lightning.data.stored_neighbours import FaissIndex, StoredNeighbours


class NeighbourSearch(Workload):
    """Nearest neighbours of some representations among all: a tenth of ImageNet, on a GPU all of ImageNet.

    Args:
        memory: of the search, in bytes.
        faiss: find candidates by faiss.
        size: number of representations that are searched.
        queries: number of queries per run.
    """

    unit = "representation"
    heavy = True
    DIM, K = 256, 50

    def __init__(self, memory: int, faiss: bool = False, size: int = 128_000, queries: int = 8192) -> None:
        self.memory, self.faiss, self.size, self.queries = memory, faiss, size, min(queries, size)
        method = "faiss" if faiss else "matmul"
        self.name = f"{self.K} neighbours among {size} by {method}, {memory / 1e6:g} MB"

    def prepare(self, device: torch.device, execution: Execution | None = None) -> Variants:
        folder = tempfile.TemporaryDirectory()
        store = self.write_store(Path(folder.name) / "store")
        index, where = (FaissIndex, torch.device("cpu")) if self.faiss else (ExactIndex, device)

        def work() -> None:
            _ = folder  # deleted together with this function
            search = StoredNeighbours(store, self.K, self.memory, where, index)
            for start in range(0, self.queries, search.chunks.queries):
                search.find(start, min(start + search.chunks.queries, self.queries))

        return Variants(work, self.queries)

    def write_store(self, folder: Path) -> Store:
        """Write a store of random representations."""
        writer = StoreWriter(folder, self.size, 1, 16384, {})
        for shard in writer.pending():
            # noise for timing, not a sample: numpy fills gigabytes without a device; seeding by the shard makes an
            # interrupted store continue with the same noise
            rows = np.random.default_rng(shard.number).normal(size=(shard.stop - shard.start, 1, self.DIM))
            writer.write(shard, {"representation": rows.astype(np.float32)})
        writer.finish()
        return Store.open(folder)
