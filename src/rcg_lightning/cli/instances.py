"""`rcg instances`: the representations that an instance-conditioned generator is given, as a store of their own."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rcg_lightning.cli.parsing import call, echo
from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.data.neighbours import Bank, kmeans, nearest
from rcg_lightning.data.store import Store
from rcg_lightning.data.store_writer import StoreWriter
from rcg_lightning.data.stored_neighbours import StoredRows
from rcg_lightning.errors import UserError
from rcg_lightning.types import require


def instances(data: ImageDataModule, out: Path, count: int | None = None, seed: int = 0, most: int = 200_000) -> None:
    """Write the instances to generate from: all training images, or those nearest to the centres of k-means.

    Where the images have labels and a store of neighbours is given, those of each instance's neighbours go with it.
    To generate from another data set without training again, give that one here.

    Args:
        data: the images, with --data.stores of `rcg extract` and, for labels, of `rcg neighbours`.
        out: store to write.
        count: how many instances; all images unless given.
        seed: of the first centres.
        most: find the centres of at most so many representations, spread evenly over the store.
    """
    data.prepare_data()
    columns = data.columns("train")
    if "representation" not in columns:
        raise UserError("no representations to choose from: give a store of `rcg extract` as --data.stores")
    source, known = columns["representation"], data.images("train")
    rows, how = chosen_rows(source, count, seed, most)
    near = columns.get("neighbours") if known.labels is not None else None
    identity = {name: source.identity.get(name) for name in ("dataset", "transform", "representation")}
    identity |= {"split": "instances", "instances": how}
    spec: dict[str, dict[str, Any]] = {"representation": _added(source, "representation")}
    if near is not None:
        identity["labels"] = near.identity.get("neighbours")
        spec["labels"] = {"count": known.classes}
    floats = "float16" if source.columns["representation"]["dtype"] == "float16" else "float32"
    writer = StoreWriter(out, len(rows), source.views, source.shard_rows, identity, floats)
    for shard in writer.pending():
        chosen = rows[shard.start : shard.stop]
        views = [source.read("representation", chosen, view) for view in range(source.views)]
        written = {"representation": np.stack(views, axis=1), "image": _of_views(chosen, source.views)}
        if near is not None and known.labels is not None:
            written["labels"] = _of_views(known.labels[near.read("neighbours", chosen)], source.views)
        writer.write(shard, written)
    writer.finish(spec)
    what = ", without labels, for there are no neighbours among the stores"
    if near is not None:
        what = f", with the labels of {near.columns['neighbours']['shape'][0]} neighbours each"
    echo(f"{out}: {len(rows)} of {source.size} images as instances{what}")


def chosen_rows(source: Store, count: int | None, seed: int, most: int) -> tuple[np.ndarray, str]:
    """Return the rows (n,) of the instances, ascending, and what was chosen in words."""
    if count in (None, source.size):
        return np.arange(source.size), "all"
    held = f"{source.path} holds {source.size} images: choose --count from 1 to that"
    require(0 < count < source.size, f"{count} instances were asked for, and {held}")
    return central_rows(source, count, seed, most), f"k{count}/seed{seed}/most{most}"


def central_rows(source: Store, count: int, seed: int, most: int) -> np.ndarray:
    """Return ``count`` different rows (count,), ascending: those nearest to as many centres of k-means (view 0)."""
    some = np.linspace(0, source.size - 1, max(count, min(source.size, most))).astype(np.int64)
    points = torch.from_numpy(source.read("representation", some)).float()
    return np.sort(nearest_different(kmeans(points, count, seed).centroids, StoredRows(source)))


def nearest_different(queries: Tensor, bank: Bank) -> np.ndarray:
    """Return for each query (n, d) the nearest row that none before it has taken: (n,) int64."""
    chosen, taken = np.empty(len(queries), np.int64), set()
    left, k = list(range(len(queries))), 2
    while left:
        k = min(4 * k, len(bank))  # few are taken already, as a rule
        candidates = nearest(queries[left], bank, k)[1].tolist()
        still = []
        for number, places in zip(left, candidates):
            free = next((place for place in places if place not in taken), None)
            if free is None:
                still.append(number)
            else:
                chosen[number] = free
                taken.add(free)
        left = still
    return chosen


def _of_views(values: np.ndarray, views: int) -> np.ndarray:
    """Return ``values`` (n, *S), which are of images, for each of their views: (n, V, *S)."""
    return np.repeat(values[:, None], views, axis=1)


def _added(store: Store, column: str) -> dict[str, Any]:
    """Return what the maker of a column noted of it."""
    return {name: fact for name, fact in store.columns[column].items() if name not in ("shape", "dtype")}


def main(name: str, argv: list[str]) -> None:
    examples = [
        "rcg instances --config digits/data --data.stores [runs/store,runs/neighbours] --count 100 --out runs/instances"
    ]
    call(instances, name, argv, examples)
