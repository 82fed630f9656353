"""`rcg principal`: principal components of the pixels, as a baseline encoder."""

from pathlib import Path

import torch

from rcg_lightning.arguments import ImageSize, SampleCount, Width
from rcg_lightning.cli.messages import echo
from rcg_lightning.cli.parsing import call
from rcg_lightning.data.data_module import ImageDataModule, as_floats
from rcg_lightning.data.image_split import fixed_subset
from rcg_lightning.networks.principal_components import fit_principal_components
from rcg_lightning.pretrained.network_folder import save_network
from rcg_lightning.pretrained.preprocess import Preprocess
from rcg_lightning.pretrained.trained_encoder import encoder_settings


def principal(
    data: ImageDataModule,
    out: Path,
    dim: Width = 32,
    max_images: SampleCount = 20_000,
    size: ImageSize | None = None,
) -> None:
    """Fit principal components of the training images' pixels and save them as an encoder (TrainedEncoder).

    On simple images this baseline equals a trained encoder.

    Args:
        data: the images.
        out: network folder to write.
        dim: number of components.
        max_images: maximum number of images to fit on.
        size: shrink larger images to this height and width first; None leaves them as they are.
    """
    data.prepare_data()
    index = fixed_subset(len(data.images("train")), max_images)
    images = [as_floats(batch)["image"] for batch in data.deterministic_batches("train", frozenset({"image"}), index)]
    channels, side, _ = data.spec.image
    small = None if size is None or side <= size else size
    preprocess = Preprocess([0.0] * channels, [1.0] * channels, small, antialias=True)
    network = fit_principal_components(torch.cat([preprocess(image) for image in images]), dim)
    save_network(out, network, encoder_settings(preprocess, head=False))
    echo(f"{out}: {dim} principal components")


def main(name: str, argv: list[str]) -> None:
    call(principal, name, argv, ["rcg principal --data.source Digits --dim 32 --out runs/principal"])
