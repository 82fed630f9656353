"""Neighbours among stored rows: the same in any amount of memory, and with faiss."""

import numpy as np
import pytest
import torch

from rcg_lightning.data.neighbours import ExactIndex
from rcg_lightning.data.store import Store
from rcg_lightning.data.store_writer import StoreWriter
from rcg_lightning.data.stored_neighbours import (
    FaissIndex,
    StoredNeighbours,
    StoredRows,
    chunks_within,
    itself_first,
    min_bytes,
)
from rcg_lightning.errors import UserError

CPU = torch.device("cpu")
SIZE, DIM, K = 2500, 24, 6


@pytest.fixture
def store(tmp_path):
    rows = np.random.default_rng(0).normal(size=(SIZE, 2, DIM)).astype(np.float32)
    writer = StoreWriter(tmp_path / "store", SIZE, 2, 700, {})
    for shard in writer.pending():
        writer.write(shard, {"representation": rows[shard.start : shard.stop]})
    writer.finish()
    return Store.open(tmp_path / "store")


def exact(store):
    rows = torch.nn.functional.normalize(torch.from_numpy(store.whole("representation")[:, 0]).double())
    return (rows @ rows.T).topk(K).indices.numpy()


def all_of(found):
    return np.concatenate([found.find(start, min(start + 1000, SIZE)) for start in range(0, SIZE, 1000)])


def test_the_same_neighbours_in_little_and_much_memory(store, monkeypatch):
    read, lengths = StoredRows.__getitem__, []

    def recorded(self, rows):
        lengths.append(len(range(*rows.indices(SIZE))))
        return read(self, rows)

    monkeypatch.setattr(StoredRows, "__getitem__", recorded)
    least = min_bytes(SIZE, DIM, K)
    little = StoredNeighbours(store, K, least, CPU)
    np.testing.assert_array_equal(all_of(little), exact(store))
    assert isinstance(little.bank, StoredRows)
    assert max(lengths) < SIZE / 2  # 1000, the queries
    much = StoredNeighbours(store, K, 10**9, CPU)
    lengths.clear()
    np.testing.assert_array_equal(all_of(much), exact(store))
    assert len(lengths) == 3  # only the queries are read again


@pytest.mark.parametrize("memory", [30e6, 256e6, 2e9, 64e9])
@pytest.mark.parametrize(("dim", "k"), [(32, 5), (256, 50), (2048, 50)])
def test_chunks_stay_within_the_memory(memory, dim, k):
    size = 1_281_167
    if memory < min_bytes(size, dim, k):
        with pytest.raises(UserError, match="memory"):
            chunks_within(int(memory), size, dim, k)
        return
    chunks = chunks_within(int(memory), size, dim, k)
    floats = chunks.queries * (3 * dim + 6 * k) + 5 * chunks.bank * dim
    floats += chunks.tile * (chunks.bank + 3 * 16 * k) + 2 * chunks.exact * k * dim
    assert 4 * floats <= memory
    assert min(chunks.queries, chunks.tile) >= 16
    assert chunks.bank >= 1024


def test_more_neighbours_than_rows_are_rejected(store):
    with pytest.raises(UserError, match="holds 2500 images"):
        StoredNeighbours(store, SIZE + 1, 10**9, CPU)
    assert StoredNeighbours(store, SIZE, 10**9, CPU).find(7, 8)[0, 0] == 7


def test_copies_of_a_row_do_not_hide_it():
    found = np.array([[0, 1, 2], [1, 0, 2], [5, 3, 2], [4, 6, 7]])
    assert itself_first(found, np.arange(4)).tolist() == [[0, 1, 2], [1, 0, 2], [2, 5, 3], [3, 4, 6]]


def test_faiss_finds_the_same(store):
    pytest.importorskip("faiss", reason="the extra faiss is not installed")
    for memory in (min_bytes(SIZE, DIM, K), 10**9):
        found = StoredNeighbours(store, K, memory, CPU, FaissIndex)
        np.testing.assert_array_equal(all_of(found), exact(store))
    rows = torch.nn.functional.normalize(torch.from_numpy(store.whole("representation")[:, 0]))
    no_limit = torch.full((50, 1), torch.inf)
    score, index = FaissIndex(rows)(rows[:50], 4, no_limit)
    expected, candidates = ExactIndex(rows)(rows[:50], 4, no_limit)
    expected, lowest = expected.topk(4, largest=False)
    assert torch.equal(index, candidates.gather(1, lowest))
    torch.testing.assert_close(1 + 2 * score, expected, rtol=0, atol=1e-5)
