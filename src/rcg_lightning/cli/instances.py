"""`rcg instances`: the representations that an instance-conditioned generator is given, as a store of their own."""

from pathlib import Path

from rcg_lightning.cli.messages import echo
from rcg_lightning.cli.parsing import call
from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.data.instances import write_instances


def instances(data: ImageDataModule, out: Path, count: int | None = None, seed: int = 0, most: int = 200_000) -> None:
    """Write the instances to generate from: all training images, or those nearest to the centres of k-means.

    Where the images have labels and a store of neighbours is given, those of each instance's neighbours go with it.
    To generate from another data set without training again, give that one here.

    Args:
        data: the images, with --data.stores of `rcg extract` and, for labels, of `rcg neighbours`.
        out: store to write.
        count: how many instances; all images unless given.
        seed: of the first centres.
        most: find the centres of at most this many representations, spread evenly over the store.
    """
    made = write_instances(data, out, count, seed, most)
    labels = ", without labels, for there are no neighbours among the stores"
    if "labels" in made.columns:
        labels = f", with the labels of {made.columns['labels']['shape'][0]} neighbours each"
    echo(f"{out}: {made.size} of {len(data.images('train'))} images as instances{labels}")


def main(name: str, argv: list[str]) -> None:
    examples = [
        "rcg instances --config digits/data --data.stores [runs/store,runs/neighbours] --count 100 --out runs/instances"
    ]
    call(instances, name, argv, examples)
