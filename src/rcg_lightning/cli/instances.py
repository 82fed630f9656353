"""`rcg instances`: a store of the representations on which an instance-conditioned generator is conditioned."""

from pathlib import Path

from rcg_lightning.arguments import PositiveInt
from rcg_lightning.cli.messages import echo
from rcg_lightning.cli.parsing import call
from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.data.instances import write_instances


def instances(
    data: ImageDataModule, out: Path, count: PositiveInt | None = None, seed: int = 0, max_images: PositiveInt = 200_000
) -> None:
    """Write the instances to generate from: all training images, or the images nearest to k-means centres.

    If the images have labels and a store of neighbours is given, each instance stores the labels of its neighbours. To
    generate from another data set without training again, give that data set here.

    Args:
        data: the images, with --data.stores of `rcg extract` and, for labels, of `rcg neighbours`.
        out: store to write.
        count: number of instances; None takes all images.
        seed: of the initial centres.
        max_images: maximum number of images to find the centres of, spread evenly over the store.
    """
    store = write_instances(data, out, count, seed, max_images)
    labels = ", without labels, since no store holds neighbours"
    if "labels" in store.columns:
        labels = f", with the labels of {store.columns['labels']['shape'][0]} neighbours each"
    echo(f"{out}: {store.size} of {len(data.images('train'))} images as instances{labels}")


def main(name: str, argv: list[str]) -> None:
    examples = [
        "rcg instances --config digits/data --data.stores [runs/store,runs/neighbours] --count 100 --out runs/instances"
    ]
    call(instances, name, argv, examples)
