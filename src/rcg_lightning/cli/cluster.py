"""`rcg cluster`: k-means over a store of representations, as a store of cluster labels."""

from pathlib import Path

from rcg_lightning.arguments import PositiveInt
from rcg_lightning.cli.messages import echo
from rcg_lightning.cli.parsing import call
from rcg_lightning.data.store import representation_store
from rcg_lightning.data.stored_clusters import fit_centres, read_centres, write_clusters


def cluster(
    store: Path,
    out: Path,
    count: PositiveInt = 10,
    seed: int = 0,
    restarts: PositiveInt = 4,
    max_images: PositiveInt = 200_000,
    centres: Path | None = None,
) -> None:
    """Cluster representations by k-means and write each image's cluster, which can replace a class label.

    Args:
        store: written by `rcg extract`.
        out: store to write; list it in data.stores next to the first.
        count: number of clusters.
        seed: of the initial centres.
        restarts: number of runs, of which the best is used.
        max_images: maximum number of images to fit on, spread evenly over the store.
        centres: an earlier output of this command whose centres are reused, such as for evaluation images.
    """
    source = representation_store(store)
    fitted = (
        fit_centres(source, count, seed, restarts, max_images) if centres is None else read_centres(centres, source)
    )
    clusters = write_clusters(source, out, *fitted)
    sizes = clusters.columns["cluster"]["sizes"]
    images = "images" if source.views == 1 else "views of images"
    spread = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
    echo(f"{out}: {len(sizes)} cluster{'' if len(sizes) == 1 else 's, each'} of {spread} {images}")


def main(name: str, argv: list[str]) -> None:
    call(cluster, name, argv, ["rcg cluster --store runs/store --count 1000 --out runs/clusters"])
