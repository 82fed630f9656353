"""Every kind of stage at the size of the digits' experiments, on data that need no network connection."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rcg_lightning.bench.workload import shipped_stage
from rcg_lightning.core.samplers import DDIM, Ancestral, DPMSolver2M, Euler, Heun, Sampler
from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.data.datasets import Digits
from rcg_lightning.data.store_writer import StoreWriter
from rcg_lightning.networks.convnet import SmallConvNet
from rcg_lightning.networks.heads import Projected, ProjectionHead
from rcg_lightning.pretrained.network_folder import save_network
from rcg_lightning.pretrained.preprocess import Preprocess
from rcg_lightning.pretrained.trained_encoder import encoder_settings
from rcg_lightning.random_state import seeded
from rcg_lightning.stages.base import Stage
from rcg_lightning.stages.generator import Generator
from rcg_lightning.types import DataSpec

DIM, TOKENS, CODES, NEIGHBOURS = 32, 16, 64, 5  # as digits/encoder, digits/tokenizer and rcg neighbours make them
MOMENTS = (8, 4, 4)  # mean and deviation of four channels
SGD = {"class_path": "SGD", "init_args": {"lr": 0.05, "momentum": 0.0}}  # its update is linear in the gradient


@dataclass(frozen=True)
class Case:
    """A stage of a shipped config.

    Attributes:
        name: of the case.
        config: the experiment.
        changes: arguments of the stage to replace, as in a config.
        samplers: samplers to compare next to the config's own.
        looseness: factor of the tolerances, where a choice among codes makes the result jump.
        with_encoder: further changes, given the folder of an encoder.
    """

    name: str
    config: str
    changes: dict[str, Any] = field(default_factory=dict)
    samplers: tuple[Sampler, ...] = ()
    looseness: float = 1.0
    with_encoder: Callable[[Path], dict[str, Any]] | None = None

    def stage(self, spec: DataSpec, encoder: Path, linear: bool = False) -> Stage:
        """Build the stage; ``linear`` replaces its optimizers by SGD."""
        changes = dict(self.changes) | (self.with_encoder(encoder) if self.with_encoder else {})
        if linear:
            changes["optimizer"] = SGD
            if self.adversarial:
                changes["discriminator_optimizer"] = SGD
        return shaken(shipped_stage(self.config, spec, **changes))

    @property
    def adversarial(self) -> bool:
        """Whether a discriminator is trained too."""
        return "gan" in self.config


def given(condition: str) -> dict[str, Any]:
    """Return the change to a condition."""
    return {"condition": condition}


def trained_encoder(folder: Path) -> dict[str, Any]:
    """Return an encoder, as in a config."""
    return {"class_path": "TrainedEncoder", "init_args": {"folder": str(folder)}}


STYLEGAN2 = {
    "condition": "RepresentationCondition",
    "generator": {
        "class_path": "StyleGAN2Generator",
        "init_args": {"noise_dim": 16, "width": 32, "layers": 2, "channel_base": 128, "channel_max": 16},
    },
    "discriminator": {
        "class_path": "StyleGAN2Discriminator",
        "init_args": {"layers": 2, "channel_base": 128, "channel_max": 16, "group": 4},
    },
}
MAGE_SIZES = {"width": 96, "depth": 2, "heads": 4, "decoder_width": 96, "decoder_depth": 2, "decoder_heads": 4}
MAGE = {"class_path": "MAGE", "init_args": MAGE_SIZES | {"dropout": 0.0}}  # fused attention drops by its own numbers

CASES = (
    Case("RDM", "digits/rdm"),
    Case("RDM by class", "digits/rdm_class"),
    Case(
        "RDM, encoder in the step",
        "digits/rdm",
        with_encoder=lambda folder: {
            "codec": {"class_path": "Representations", "init_args": {"encoder": trained_encoder(folder)}}
        },
    ),
    Case("MLP over pixels", "digits/generator", given("RepresentationCondition")),
    Case(
        "DiT",
        "digits/dit",
        given("RepresentationCondition"),
        samplers=(DDIM(6, eta=1.0), Ancestral(6), Euler(6), Heun(6), DPMSolver2M(6)),
    ),
    Case("flow", "digits/flow", given("ClassCondition")),
    Case("U-Net", "digits/unet", given("ClassCondition")),
    Case("U-Net over KL latents", "digits/latent", {"codec": "KLLatents", **given("RepresentationCondition")}),
    Case(
        "DiT with alignment",
        "digits/repa",
        with_encoder=lambda folder: {
            "alignment": {"encoder": trained_encoder(folder), "depth": 2, "weight": 0.5, "hidden": 64}
        },
    ),
    Case("MAGE", "digits/mage", {"transformer": MAGE, **given("RepresentationCondition")}),
    Case("tokenizer", "digits/tokenizer", looseness=10.0),
    Case("MoCo v3", "digits/encoder", looseness=2.0),  # batches of few images, normalised by themselves
    Case("classifier", "digits/classifier", looseness=2.0),
    Case("BigGAN", "digits/icgan_class"),
    Case("StyleGAN2", "coco256/icgan_stylegan2", STYLEGAN2),
)


class SmallData:
    """scikit-learn's digits with random columns of every kind, and an encoder with random weights.

    Args:
        folder: for the stores and the encoder.
        dim: dimensions of a representation.
    """

    def __init__(self, folder: Path, dim: int = DIM) -> None:
        self.folder, self.dim = folder, dim
        self.stores = {split: self._write(split) for split in ("train", "eval")}
        self.encoder = folder / "encoder"
        with seeded(0):
            network = Projected(SmallConvNet(1, 8), ProjectionHead(64, 64, DIM, layers=2))
        save_network(self.encoder, network.eval(), encoder_settings(Preprocess([0.5], [0.5])))

    def module(self, case: Case, batch_size: int = 32) -> ImageDataModule:
        """Return the data module of a case; one that encodes in the step has no stores."""
        if case.with_encoder is not None:
            return ImageDataModule(Digits(), batch_size=batch_size)
        stores = {split: [folder] for split, folder in self.stores.items()}
        return ImageDataModule(Digits(), batch_size=batch_size, stores=stores["train"], eval_stores=stores["eval"])

    def _write(self, split: str) -> Path:
        data, folder = ImageDataModule(Digits()), self.folder / split
        rng = np.random.default_rng(len(split))  # columns to train on, no samples: numpy makes a store's arrays
        size = len(data.images(split))
        names = {"representation": "random", "tokens": "random", "latent": "random", "neighbours": "random"}
        writer = StoreWriter(folder, size, 1, size, {**data.store_identity(split), **names})
        for shard in writer.pending():
            writer.write(shard, self._columns(rng, size, split))
        meta = {
            "tokens": {"count": CODES},
            "latent": {"moments": True},
            "neighbours": {"representation": "random"},
        }
        writer.finish(meta if split == "train" else {name: meta[name] for name in ("tokens", "latent")})
        return folder

    def _columns(self, rng: np.random.Generator, size: int, split: str) -> dict[str, np.ndarray]:
        columns = {
            "representation": rng.normal(size=(size, 1, self.dim)).astype(np.float32),
            "tokens": rng.integers(CODES, size=(size, 1, TOKENS)),
            "latent": rng.uniform(size=(size, 1, *MOMENTS)).astype(np.float32),
        }
        if split == "train":
            columns["neighbours"] = rng.integers(size, size=(size, 1, NEIGHBOURS))
        return columns


def shaken(stage: Stage) -> Stage:
    """Add noise to all weights, also to those that start at zero and hide mistakes."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in stage.parameters():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=generator))
    if isinstance(stage, Generator) and stage.ema is not None:
        stage.after_start(frozenset(stage.state_dict()))
    return stage
