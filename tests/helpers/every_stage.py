"""Train every stage in turn, as a script that each of several processes runs.

In ``fit_equally`` noise and timesteps are a function of the image, as in validation, so one process with the whole
batch must reach the same weights. ``fit_as_it_is`` trains without this change.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import torch.nn.functional as F

from rcg_lightning.callbacks.representation_distance import RepresentationDistance
from rcg_lightning.cli.cluster import cluster
from rcg_lightning.cli.extract import extract
from rcg_lightning.cli.sample import sample
from rcg_lightning.conditions.class_label import ClassCondition
from rcg_lightning.conditions.cluster import ClusterCondition
from rcg_lightning.conditions.joint import JointCondition
from rcg_lightning.conditions.none import NoCondition
from rcg_lightning.conditions.representation import RepresentationCondition
from rcg_lightning.core.diffusion import FlowVelocity
from rcg_lightning.core.samplers import DDIM
from rcg_lightning.core.schedule import CosineSchedule, FlowSchedule
from rcg_lightning.data.augmentations import SmallGreyAugmentation
from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.data.datasets import Digits
from rcg_lightning.networks.biggan import BigGANDiscriminator, BigGANGenerator
from rcg_lightning.networks.cgan import ConditionalDiscriminator, ConditionalGenerator, Rectified
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.convnet import SmallConvNet
from rcg_lightning.networks.denoiser import Denoiser
from rcg_lightning.networks.discriminators import PatchDiscriminator
from rcg_lightning.networks.dit import DiT
from rcg_lightning.networks.ema import EMA
from rcg_lightning.networks.heads import Predictor, Projected, ProjectionHead
from rcg_lightning.networks.mage import MAGE
from rcg_lightning.networks.rdm_mlp import ModulatedMLP
from rcg_lightning.networks.vqgan import MaskGITVQGAN
from rcg_lightning.pretrained.codecs import Pixels, Representations
from rcg_lightning.pretrained.preprocess import Preprocess
from rcg_lightning.pretrained.trained_encoder import TrainedEncoder
from rcg_lightning.stages.adversarial import AdversarialStage
from rcg_lightning.stages.alignment import Alignment
from rcg_lightning.stages.base import Stage
from rcg_lightning.stages.classifier import ClassifierStage
from rcg_lightning.stages.codebook import CodebookTraining, EMACodebook
from rcg_lightning.stages.diffusion import DiffusionStage
from rcg_lightning.stages.masked import MaskedStage
from rcg_lightning.stages.optimization import SGD, AdamW
from rcg_lightning.stages.ssl import MoCoV3Stage
from rcg_lightning.stages.tokenizer import Adversary, TokenizerStage
from rcg_lightning.trainer import Trainer
from rcg_lightning.types import Backbone, Codec

STEPS = 4
BATCH = 64  # of all processes together
SHARD_ROWS = {"train": 200, "eval": 500}  # evaluation images are one shard: a second process has no work
SAMPLES = {"none": 20}  # likewise: samples have shards of 32
CONDITIONS = {
    "none": NoCondition,
    "class": ClassCondition,
    "cluster": ClusterCondition,
    "representation": RepresentationCondition,
    "joint": lambda: JointCondition([RepresentationCondition(), ClassCondition()]),
}


class WithNoiseOfValidation:
    """Trains with the noise of validation, which depends only on the image's index."""

    def training_step(self, batch, batch_idx):
        self.eval()
        return super().training_step(batch, batch_idx)


class IndexSeeded(WithNoiseOfValidation, DiffusionStage): ...


class IndexSeededGAN(WithNoiseOfValidation, AdversarialStage): ...


class IndexSeededMAGE(WithNoiseOfValidation, MaskedStage): ...


class Brightness(Codec):
    """16 tokens of a digit: the brightness of 2x2 pixels in four levels."""

    def shape(self, spec):
        return (16,)

    def count(self, spec):
        return 4

    def encode(self, batch):
        return (F.avg_pool2d(batch["image"], 2) * 3).round().long().flatten(1)

    def decode(self, z):
        return z.unflatten(1, (1, 4, 4)) / 3


def moco() -> MoCoV3Stage:
    encoder = Projected(SmallConvNet(1, 8, (8, 16, 16)), ProjectionHead(16, 32, 8, layers=2))
    view = SmallGreyAugmentation
    normal = Preprocess([0.5], [0.5])
    return MoCoV3Stage(encoder, Predictor(8, 32, 8), view(), view(), SGD(0.05), momentum=0.9, preprocess=normal)


def classifier() -> ClassifierStage:
    return ClassifierStage(SGD(0.05), widths=(8, 16, 16), augmentation=SmallGreyAugmentation())


def generator(kind: str, condition: str, equally: bool, network: Backbone | None = None) -> DiffusionStage:
    """A small RDM or generator of images."""
    make = IndexSeeded if equally else DiffusionStage
    return make(
        codec=Representations() if kind == "rdm" else Pixels(),
        condition=CONDITIONS[condition](),
        denoiser=Denoiser(network or ModulatedMLP(24, 2), CosineSchedule(100)),
        conditioner=Conditioner(drop=0.0 if equally else 0.2, noise=0.0 if equally else 0.1),
        optimizer=SGD(0.5) if equally else AdamW(2e-2),
        sampler=DDIM(5, eta=1.0),
        ema=EMA(0.5),
        stratified=not equally,
        tile=2,
    )


def aligned(encoder: Path) -> DiffusionStage:
    """A flow whose transformer is aligned with a trained encoder."""
    return IndexSeeded(
        codec=Pixels(),
        condition=NoCondition(),
        denoiser=Denoiser(DiT(2, 16, 2, 2), FlowSchedule(100), FlowVelocity()),
        conditioner=Conditioner(),
        optimizer=SGD(0.5),
        ema=EMA(0.5),
        alignment=Alignment(TrainedEncoder(encoder), depth=1, hidden=16),
    )


def masked(equally: bool) -> MaskedStage:
    """A class-conditional MAGE over tokens."""
    make = IndexSeededMAGE if equally else MaskedStage
    return make(
        codec=Brightness(),
        condition=ClassCondition(),
        transformer=MAGE(16, 1, 2, 16, 1, 2),
        conditioner=Conditioner(drop=0.0 if equally else 0.2),
        optimizer=SGD(0.5) if equally else AdamW(2e-2, decay_vectors=False),
        ema=EMA(0.5),
    )


def gan(equally: bool) -> AdversarialStage:
    """A conditional generator with its discriminator; ``equally`` takes networks without batch statistics."""
    make = IndexSeededGAN if equally else AdversarialStage
    network = ConditionalGenerator(8, 16, 8, 16, init_range=0.3) if equally else BigGANGenerator(4, 8)
    discriminator = ConditionalDiscriminator(Rectified(16), Rectified(8), Rectified(16), init_range=0.1)
    return make(
        codec=Pixels(),
        condition=ClassCondition(),
        generator=network,
        discriminator=discriminator if equally else BigGANDiscriminator(4),
        conditioner=Conditioner(drop=0.0),
        discriminator_conditioner=Conditioner(drop=0.0),
        optimizer=SGD(0.5, clip=0.5) if equally else AdamW(1e-2),
        discriminator_optimizer=SGD(0.2) if equally else AdamW(1e-2),
        n_critic=1 if equally else 2,
        accumulate=2,
        ema=EMA(0.5, buffers=True),
        tile=2,
    )


def tokenizer(equally: bool) -> TokenizerStage:
    """An autoencoder with an adversary; ``equally`` revives no codes, as that is random in each process."""
    network = MaskGITVQGAN(1, 4, (1, 2), 1, codes=8, dim=4, groups=2)
    adversary = Adversary(PatchDiscriminator(4, 1), SGD(0.1) if equally else AdamW(1e-3), weight=0.5, start=1)
    codebook = EMACodebook(0.8, patience=None) if equally else CodebookTraining(patience=2)
    return TokenizerStage(network, SGD(0.05) if equally else AdamW(1e-2), codebook, adversary=adversary, accumulate=2)


def transformer() -> DiffusionStage:
    """A class-conditional DiT whose blocks are recomputed in the backward pass."""
    return generator("pixels", "class", True, DiT(2, 16, 2, 2, checkpointing=True))


ALTERNATING = {"gan": gan, "tokenizer": tokenizer}


class Session:
    """Output folder and hardware of one launch.

    Args:
        folder: of all output.
        devices: number of processes on this machine.
        num_nodes: number of machines.
    """

    def __init__(self, folder: Path, devices: int = 1, num_nodes: int = 1) -> None:
        self.folder, self.hardware = folder, {"accelerator": "cpu", "devices": devices, "num_nodes": num_nodes}
        self.world = devices * num_nodes

    def data(self, stores: Path | None = None) -> ImageDataModule:
        paths: dict[str, Any] = {}
        if stores is not None:
            paths = {
                "stores": [stores / "train", stores / "train_clusters"],
                "eval_stores": [stores / "eval", stores / "eval_clusters"],
            }
        return ImageDataModule(Digits(), batch_size=BATCH // self.world, **paths)

    def fit(
        self, name: str, stage: Stage, data: ImageDataModule, callbacks: list | None = None, **settings: Any
    ) -> None:
        """Train for a few steps; save this process's weights and validation metrics."""
        quiet = {"logger": False, "enable_progress_bar": False, "precision": "32-true"}
        trainer = Trainer(self.folder / name, STEPS, callbacks=callbacks, **quiet, **self.hardware, **settings)  # type: ignore[arg-type]
        trainer.fit(stage, datamodule=data)
        note = {
            "state": stage.state_dict(),
            "metrics": {key: float(value) for key, value in trainer.callback_metrics.items()},
            "ddp": dict(getattr(trainer.strategy, "_ddp_kwargs", {})),
            "strategy": type(trainer.strategy).__name__,
            "world": trainer.world_size,
        }
        torch.save(note, self.folder / f"{name}-{trainer.global_rank}.pt")
        self.meet()

    def meet(self) -> None:
        """Wait for all processes, so none reads a file before another has written it."""
        if torch.distributed.is_initialized():
            torch.distributed.barrier()

    def extract(self, encoder: Path) -> None:
        for split in ("train", "eval"):
            trained = TrainedEncoder(encoder)
            extract(
                self.data(), self.folder / "stores" / split, trained, None, split, SHARD_ROWS[split], **self.hardware
            )
            if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
                fitted = None if split == "train" else self.folder / "stores" / "train_clusters"
                clusters = self.folder / "stores" / f"{split}_clusters"
                cluster(self.folder / "stores" / split, clusters, 4, centres=fitted)
            self.meet()

    def fit_equally(self, stores: Path) -> None:
        self.fit("rdm_equally", generator("rdm", "none", True), self.data(stores))
        self.fit("rdm_class_equally", generator("rdm", "class", True), self.data(stores))
        for condition in CONDITIONS:
            self.fit(f"{condition}_equally", generator("pixels", condition, True), self.data(stores))
        for name, make in ALTERNATING.items():
            self.fit(f"{name}_equally", make(True), self.data())
        self.fit("masked_equally", masked(True), self.data())
        self.fit("again_equally", transformer(), self.data())
        self.fit("accumulated_equally", transformer(), self.data(), accumulate_grad_batches=2)
        self.fit("aligned_equally", aligned(stores.parent / "moco" / "encoder"), self.data())

    def fit_as_it_is(self, stores: Path) -> None:
        self.fit("rdm", generator("rdm", "class", False), self.data(stores), [RepresentationDistance()])
        for condition in CONDITIONS:
            self.fit(condition, generator("pixels", condition, False), self.data(stores))
        self.fit("masked", masked(False), self.data())
        for name, make in ALTERNATING.items():
            self.fit(name, make(False), self.data())

    def sample(self, trained: Path) -> None:
        """Sample from the checkpoints in ``trained``."""
        settings = {"png": False, "grid": False, "batch_size": 16, **self.hardware}
        sample(trained / "rdm" / "last.ckpt", self.folder / "samples_rdm", 50, **settings)
        for condition in CONDITIONS:
            needs_prior = condition in ("representation", "joint")
            prior = trained / "rdm" / "last.ckpt" if needs_prior else None
            guidance = None if condition == "none" else 1.5
            checkpoint, out = trained / condition / "last.ckpt", self.folder / f"samples_{condition}"
            sample(checkpoint, out, SAMPLES.get(condition, 50), prior=prior, guidance=guidance, **settings)
            self.meet()
        weak = trained / "none" / "last.ckpt"
        sample(trained / "class" / "last.ckpt", self.folder / "samples_weak", 50, guidance=1.5, weak=weak, **settings)
        self.meet()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--devices", type=int)
    parser.add_argument("--num_nodes", type=int)
    given = parser.parse_args()
    torch.set_num_threads(1)
    session = Session(given.out, given.devices, given.num_nodes)
    session.fit("moco", moco(), session.data())
    session.fit("classifier", classifier(), session.data())
    session.extract(given.out / "moco" / "encoder")
    session.fit_equally(given.out / "stores")
    session.fit_as_it_is(given.out / "stores")
    session.sample(given.out)


if __name__ == "__main__":
    main()
