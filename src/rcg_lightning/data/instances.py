"""Select the instances that an instance-conditioned generator samples from, and write them as a store."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.data.kmeans import kmeans
from rcg_lightning.data.neighbours import Bank, nearest
from rcg_lightning.data.store import Store
from rcg_lightning.data.store_writer import StoreWriter
from rcg_lightning.data.stored_neighbours import StoredRows
from rcg_lightning.errors import UserError
from rcg_lightning.types import require


def write_instances(data: ImageDataModule, out: Path, count: int | None, seed: int, most: int) -> Store:
    """Write a store of instances with ``representation``, ``image`` (its position) and, if known, ``labels``.

    Labels (V, k) are those of the instance's k neighbours. They need images with labels and a store of neighbours.

    Args:
        data: data with a store of the training images' representations.
        out: folder of the new store.
        count: number of instances; None for all images.
        seed: of the first centres.
        most: fit k-means on at most this number of representations, evenly spread over the store.
    """
    data.prepare_data()
    columns = data.columns("train")
    if "representation" not in columns:
        raise UserError("no representations to choose from: give a store of `rcg extract` as --data.stores")
    source, known = columns["representation"], data.images("train")
    rows, how = chosen_rows(source, count, seed, most)
    neighbours = columns.get("neighbours") if known.labels is not None else None
    identity = {name: source.identity.get(name) for name in ("dataset", "transform", "representation")}
    identity |= {"split": "instances", "instances": how}
    spec: dict[str, dict[str, Any]] = {"representation": _added_entries(source, "representation")}
    if neighbours is not None:
        identity["labels"] = neighbours.identity.get("neighbours")
        spec["labels"] = {"count": known.classes}
    floats = "float16" if source.columns["representation"]["dtype"] == "float16" else "float32"
    writer = StoreWriter(out, len(rows), source.views, source.shard_rows, identity, floats)
    for shard in writer.pending():
        chosen = rows[shard.start : shard.stop]
        views = [source.read("representation", chosen, view) for view in range(source.views)]
        written = {"representation": np.stack(views, axis=1), "image": _repeat(chosen, source.views)}
        if neighbours is not None and known.labels is not None:
            written["labels"] = _repeat(known.labels[neighbours.read("neighbours", chosen)], source.views)
        writer.write(shard, written)
    writer.finish(spec)
    return Store.open(out)


def chosen_rows(source: Store, count: int | None, seed: int, most: int) -> tuple[np.ndarray, str]:
    """Return the rows (n,) of the instances, ascending, and the selection's name for the store's identity."""
    if count in (None, source.size):
        return np.arange(source.size), "all"
    available = f"{source.path} holds {source.size} images: choose --count from 1 to {source.size}"
    require(0 < count < source.size, f"{count} instances were asked for, but {available}")
    return central_rows(source, count, seed, most), f"k{count}/seed{seed}/most{most}"


def central_rows(source: Store, count: int, seed: int, most: int) -> np.ndarray:
    """Return the rows (count,), ascending and different, nearest to the ``count`` centres of k-means (view 0)."""
    subset = np.linspace(0, source.size - 1, max(count, min(source.size, most))).astype(np.int64)
    points = torch.from_numpy(source.read("representation", subset)).float()
    return np.sort(nearest_different(kmeans(points, count, seed).centroids, StoredRows(source)))


def nearest_different(queries: Tensor, bank: Bank) -> np.ndarray:
    """Return the nearest row (n,) int64 for each query (n, d) that no earlier query has taken."""
    chosen, taken = np.empty(len(queries), np.int64), set()
    pending, k = list(range(len(queries))), 2
    while pending:
        k = min(4 * k, len(bank))  # usually few of these are taken
        candidates = nearest(queries[pending], bank, k)[1].tolist()
        unserved = []
        for query, rows in zip(pending, candidates):
            free = next((row for row in rows if row not in taken), None)
            if free is None:
                unserved.append(query)
            else:
                chosen[query] = free
                taken.add(free)
        pending = unserved
    return chosen


def _repeat(values: np.ndarray, views: int) -> np.ndarray:
    """Repeat ``values`` (n, *S) of images for each of their views: (n, V, *S)."""
    return np.repeat(values[:, None], views, axis=1)


def _added_entries(store: Store, column: str) -> dict[str, Any]:
    """Return the entries that the maker of a column added to its spec."""
    return {name: value for name, value in store.columns[column].items() if name not in ("shape", "dtype")}
