"""`rcg cluster`: k-means over a store of representations, as a store of cluster labels."""

from pathlib import Path

import numpy as np
import torch

from rcg_lightning.cli.parsing import call, echo
from rcg_lightning.data.kmeans import assign, kmeans
from rcg_lightning.data.store import Store
from rcg_lightning.data.store_writer import StoreWriter
from rcg_lightning.types import require


def cluster(
    store: Path,
    out: Path,
    count: int = 10,
    seed: int = 0,
    restarts: int = 4,
    most: int = 200_000,
    centres: Path | None = None,
) -> None:
    """Cluster representations by k-means and write each image's cluster: labels where there are none.

    Args:
        store: made by `rcg extract`.
        out: store to write, to be given in data.stores next to the first.
        count: number of clusters.
        seed: of the first centres.
        restarts: the best of so many runs is kept.
        most: fit on at most so many representations, spread evenly over the store.
        centres: an earlier output of this command, whose clusters are used (for evaluation images).
    """
    source = Store.open(store)
    require("representation" in source.columns, f"{store} holds no representations: give a store of `rcg extract`")
    if centres is None:
        rows = np.linspace(0, source.size - 1, min(source.size, most)).astype(np.int64)
        fitted = kmeans(torch.from_numpy(source.read("representation", rows)).float(), count, seed, restarts).centroids
        how = f"{source.identity.get('representation')}/k{len(fitted)}/seed{seed}/restarts{restarts}/most{most}"
    else:
        earlier = Store.open(centres)
        require("cluster" in earlier.columns, f"{centres} holds no clusters: give an output of `rcg cluster`")
        how, encoder = str(earlier.identity["cluster"]), str(source.identity.get("representation"))
        require(
            how.startswith(f"{encoder}/"), f"{centres} has clusters of another encoder's representations than {store}"
        )
        fitted = torch.tensor(earlier.columns["cluster"]["centres"])
    fixed = {name: source.identity[name] for name in ("dataset", "split", "transform")}
    writer = StoreWriter(out, source.size, source.views, source.shard_rows, {**fixed, "cluster": how})
    sizes = np.zeros(len(fitted), np.int64)
    for shard in writer.shards:
        rows = np.arange(shard.start, shard.stop)
        views = [torch.from_numpy(source.read("representation", rows, view)) for view in range(source.views)]
        labels = np.stack([assign(part, fitted)[1].numpy() for part in views], axis=1)
        sizes += np.bincount(labels.ravel(), minlength=len(fitted))
        writer.write(shard, {"cluster": labels})
    meta = {"count": len(fitted), "sizes": sizes.tolist(), "centres": fitted.tolist()}
    writer.finish({"cluster": meta})
    what = "images" if source.views == 1 else "views of images"
    spread = f"{sizes.min()}" if sizes.min() == sizes.max() else f"{sizes.min()} to {sizes.max()}"
    echo(f"{out}: {len(fitted)} cluster{'' if len(fitted) == 1 else 's, each'} of {spread} {what}")


def main(name: str, argv: list[str]) -> None:
    call(cluster, name, argv, ["rcg cluster --store runs/store --count 1000 --out runs/clusters"])
