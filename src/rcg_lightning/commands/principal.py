"""`rcg principal`: principal components of the pixels, an encoder to compare trained ones with."""

from pathlib import Path

import torch

from rcg_lightning.commands.parsing import call, say
from rcg_lightning.data.images import ImageData, as_floats
from rcg_lightning.data.pictures import chosen
from rcg_lightning.networks.principal_components import fit_principal_components
from rcg_lightning.pretrained.network_folder import save_network
from rcg_lightning.pretrained.preprocess import Preprocess
from rcg_lightning.pretrained.trained import encoder_settings


def principal(data: ImageData, out: Path, dim: int = 32, pictures: int = 20_000) -> None:
    """Fit principal components of the training pictures' pixels and save them as an encoder (TrainedEncoder).

    On simple pictures this does as well as a trained encoder: an honest baseline.

    Args:
        data: the pictures.
        out: network folder to write.
        dim: number of components.
        pictures: fit on at most so many pictures.
    """
    data.prepare_data()
    index = chosen(len(data.pictures("train")), pictures)
    images = [as_floats(batch)["image"] for batch in data.plain("train", frozenset({"image"}), index)]
    network = fit_principal_components(torch.cat(images), dim)
    channels = data.facts.image[0]
    save_network(out, network, encoder_settings(Preprocess([0.0] * channels, [1.0] * channels), head=False))
    say(f"{out}: {dim} principal components")


def main(name: str, argv: list[str]) -> None:
    call(principal, name, argv, ["rcg principal --data.source Digits --dim 32 --out runs/principal"])
