"""Cluster labels of stored representations by k-means, as a store."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rcg_lightning.data.kmeans import assign, kmeans
from rcg_lightning.data.store import Store
from rcg_lightning.data.store_writer import StoreWriter
from rcg_lightning.types import require


def fit_centres(source: Store, count: int, seed: int, restarts: int, most: int) -> tuple[Tensor, str]:
    """Return the centres (k, R) of k-means over representations (view 0), and their identity.

    Args:
        source: store of the representations.
        count: k.
        seed: of the first centres.
        restarts: number of runs; the best one is used.
        most: fit on at most this number of representations, evenly spread over the store.
    """
    rows = np.linspace(0, source.size - 1, min(source.size, most)).astype(np.int64)
    centres = kmeans(torch.from_numpy(source.read("representation", rows)).float(), count, seed, restarts).centroids
    how = f"k{len(centres)}/seed{seed}/restarts{restarts}/most{most}"
    return centres, f"{source.identity.get('representation')}/{how}"


def read_centres(path: Path, source: Store) -> tuple[Tensor, str]:
    """Return the centres (k, R) of a store of clusters, and their identity.

    Raises:
        UserError: the store has no centres, or they belong to another encoder than the representations of ``source``.
    """
    earlier = Store.open(path)
    require("cluster" in earlier.columns, f"{path} holds no clusters: give an output of `rcg cluster`")
    identity, encoder = str(earlier.identity["cluster"]), str(source.identity.get("representation"))
    other = f"{path} has clusters of another encoder's representations than {source.path}"
    require(identity.startswith(f"{encoder}/"), other)
    return torch.tensor(earlier.columns["cluster"]["centres"]), identity


def write_clusters(source: Store, out: Path, centres: Tensor, identity: str) -> Store:
    """Write a store whose column ``cluster`` is the nearest of ``centres`` (k, R) to each stored representation."""
    fixed = {name: source.identity[name] for name in ("dataset", "split", "transform")}
    writer = StoreWriter(out, source.size, source.views, source.shard_rows, {**fixed, "cluster": identity})
    sizes = np.zeros(len(centres), np.int64)
    for shard in writer.shards:
        rows = np.arange(shard.start, shard.stop)
        views = [torch.from_numpy(source.read("representation", rows, view)) for view in range(source.views)]
        labels = np.stack([assign(view, centres)[1].numpy() for view in views], axis=1)
        sizes += np.bincount(labels.ravel(), minlength=len(centres))
        writer.write(shard, {"cluster": labels})
    writer.finish({"cluster": {"count": len(centres), "sizes": sizes.tolist(), "centres": centres.tolist()}})
    return Store.open(out)
