"""`rcg cluster`: k-means over a store of representations, as a store of cluster labels."""

from pathlib import Path

from rcg_lightning.cli.messages import echo
from rcg_lightning.cli.parsing import call
from rcg_lightning.data.store import representation_store
from rcg_lightning.data.stored_clusters import fit_centres, read_centres, write_clusters


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
        restarts: runs, of which the best counts.
        most: fit on at most this many representations, spread evenly over the store.
        centres: an earlier output of this command, whose clusters are used (for evaluation images).
    """
    source = representation_store(store)
    fitted = fit_centres(source, count, seed, restarts, most) if centres is None else read_centres(centres, source)
    made = write_clusters(source, out, *fitted)
    sizes = made.columns["cluster"]["sizes"]
    images = "images" if source.views == 1 else "views of images"
    spread = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
    echo(f"{out}: {len(sizes)} cluster{'' if len(sizes) == 1 else 's, each'} of {spread} {images}")


def main(name: str, argv: list[str]) -> None:
    call(cluster, name, argv, ["rcg cluster --store runs/store --count 1000 --out runs/clusters"])
