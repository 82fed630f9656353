"""Every kind of stage at the smallest size, with the data it trains on, for tests on the pretended device."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from helpers import every_stage
from helpers.autoencoders import save_kl, save_vq
from rcg_lightning.conditions.class_label import ClassCondition
from rcg_lightning.conditions.instance import InstanceCondition
from rcg_lightning.conditions.joint import JointCondition
from rcg_lightning.conditions.none import NoCondition
from rcg_lightning.conditions.representation import RepresentationCondition
from rcg_lightning.core.adversarial import GradientPenalty, LeCam, Logistic, PathLength
from rcg_lightning.core.diffaugment import DiffAugment
from rcg_lightning.core.diffusion import FlowVelocity
from rcg_lightning.core.masking import ParallelDecoding
from rcg_lightning.core.samplers import DDIM, Heun
from rcg_lightning.core.schedule import CosineSchedule, FlowSchedule
from rcg_lightning.data.store import Store
from rcg_lightning.data.stored_neighbours import StoredNeighbours
from rcg_lightning.networks.biggan import BigGANDiscriminator, BigGANGenerator
from rcg_lightning.networks.cgan import ConditionalDiscriminator, ConditionalGenerator, Rectified
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.convnet import SmallConvNet
from rcg_lightning.networks.denoiser import Denoiser
from rcg_lightning.networks.dit import DiT
from rcg_lightning.networks.ema import EMA
from rcg_lightning.networks.heads import Projected, ProjectionHead
from rcg_lightning.networks.mage import MAGE
from rcg_lightning.networks.rdm_mlp import ModulatedMLP, ResidualMLP
from rcg_lightning.networks.spectral import SpectralMaps
from rcg_lightning.networks.stylegan2 import StyleGAN2Discriminator, StyleGAN2Generator
from rcg_lightning.networks.stylegan2_blocks import EqualisedMaps
from rcg_lightning.networks.unet import CrossAttentionUNet, UNet
from rcg_lightning.networks.vqgan import VQGAN
from rcg_lightning.pretrained.codecs import KLLatents, Pixels, Representations, VQLatents, VQTokens
from rcg_lightning.pretrained.network_folder import save_network
from rcg_lightning.pretrained.preprocess import Preprocess
from rcg_lightning.pretrained.trained_encoder import TrainedEncoder, encoder_settings
from rcg_lightning.stages.adversarial import AdversarialStage
from rcg_lightning.stages.alignment import Alignment
from rcg_lightning.stages.base import Stage
from rcg_lightning.stages.diffusion import DiffusionStage
from rcg_lightning.stages.masked import MaskedStage
from rcg_lightning.stages.optimization import SGD, AdamW
from rcg_lightning.types import Backbone, Codec, Condition

UNET = {"width": 8, "multipliers": [1, 2], "depth": 1, "attention": [2], "head_width": 8, "groups": 4}


@dataclass(frozen=True)
class Networks:
    """Folders of the networks that stages use frozen, with random weights."""

    encoder: Path
    tokenizer: Path
    vqgan: Path
    kl: Path

    @classmethod
    def write(cls, folder: Path) -> "Networks":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            encoder = Projected(SmallConvNet(1, 8, (8, 16)), ProjectionHead(16, 16, 6, layers=2))
        save_network(folder / "encoder", encoder, encoder_settings(Preprocess([0.5], [0.5])))
        save_vq(folder / "tokenizer")
        save_vq(folder / "vqgan", VQGAN)
        save_kl(folder / "kl", channels=1)
        return cls(*(folder / name for name in ("encoder", "tokenizer", "vqgan", "kl")))


def write_neighbours(store: Path, out: Path) -> Path:
    """Write the neighbours of a store's representations; return ``out``."""
    if not out.exists():
        StoredNeighbours(Store.open(store), 5, 10**8, torch.device("cpu")).write(out)
    return out


def diffusion(codec: Codec, condition: Condition, network: Backbone) -> DiffusionStage:
    return DiffusionStage(
        codec=codec,
        condition=condition,
        denoiser=Denoiser(network, CosineSchedule(100)),
        conditioner=Conditioner(drop=0.2),
        optimizer=AdamW(1e-2, clip=1.0),  # so that zero-initialised layers hide nothing
        sampler=DDIM(3, eta=1.0),
        ema=EMA(0.5),
        stratified=True,
        tile=8,
    )


def aligned(networks: Networks) -> DiffusionStage:
    return DiffusionStage(
        codec=Pixels(),
        condition=NoCondition(),
        denoiser=Denoiser(DiT(2, 16, 2, 2), FlowSchedule(100), FlowVelocity()),
        conditioner=Conditioner(),
        optimizer=SGD(0.5),
        sampler=Heun(3),
        ema=EMA(0.5),
        alignment=Alignment(online(networks), depth=1, hidden=16),
        tile=8,
    )


def mage(networks: Networks) -> MaskedStage:
    return MaskedStage(
        codec=VQTokens(networks.tokenizer, stored=False),
        condition=RepresentationCondition(encoder=TrainedEncoder(networks.encoder)),
        transformer=MAGE(16, 1, 2, 16, 1, 2),
        conditioner=Conditioner(drop=0.2),
        optimizer=AdamW(1e-2, decay_vectors=False),
        sampler=ParallelDecoding(3),
        ema=EMA(0.5),
        tile=8,
    )


def cgan() -> AdversarialStage:
    return AdversarialStage(
        codec=Pixels(),
        condition=ClassCondition(),
        generator=ConditionalGenerator(8, 16, 8, 16, dropout=0.1, init_range=0.3),
        discriminator=ConditionalDiscriminator(Rectified(16), Rectified(8), Rectified(16), dropout=0.1),
        conditioner=Conditioner(drop=0.0),
        discriminator_conditioner=Conditioner(drop=0.0),
        optimizer=AdamW(1e-3),
        discriminator_optimizer=AdamW(1e-3),
        tile=8,
    )


def icgan() -> AdversarialStage:
    return AdversarialStage(
        codec=Pixels(),
        condition=JointCondition([ClassCondition(), InstanceCondition()]),
        generator=BigGANGenerator(4, 8),
        discriminator=BigGANDiscriminator(4),
        conditioner=Conditioner(dim=[4, 8], drop=0.0, maps=SpectralMaps()),
        discriminator_conditioner=Conditioner(dim=[8, 8], drop=0.0, maps=SpectralMaps()),
        optimizer=AdamW(1e-3),
        discriminator_optimizer=AdamW(1e-3),
        lecam=LeCam(),
        augmentation=DiffAugment(),
        n_critic=2,
        ema=EMA(0.5, buffers=True),
        tile=8,
    )


def stylegan2() -> AdversarialStage:
    sizes = {"layers": 2, "channel_base": 64, "channel_max": 8}
    return AdversarialStage(
        codec=Pixels(),
        condition=InstanceCondition(),
        generator=StyleGAN2Generator(noise_dim=5, width=6, **sizes),
        discriminator=StyleGAN2Discriminator(**sizes),
        conditioner=Conditioner(dim=6, drop=0.0, maps=EqualisedMaps()),
        discriminator_conditioner=Conditioner(drop=0.0, maps=EqualisedMaps()),
        loss=Logistic(),
        penalty=GradientPenalty(1.0, every=2),
        path_length=PathLength(every=2),
        optimizer=AdamW(1e-3),
        discriminator_optimizer=AdamW(1e-3),
        ema=EMA(0.5, buffers=True),
        tile=8,
    )


def online(networks: Networks) -> TrainedEncoder:
    return TrainedEncoder(networks.encoder)


STAGES: dict[str, Callable[[Networks], Stage]] = {
    "moco": lambda _: every_stage.moco(),
    "classifier": lambda _: every_stage.classifier(),
    "tokenizer": lambda _: every_stage.tokenizer(False),
    "rdm": lambda _: diffusion(Representations(), ClassCondition(), ResidualMLP(16, 2)),
    "rdm_online": lambda n: diffusion(Representations(online(n)), NoCondition(), ModulatedMLP(16, 2)),
    "mlp": lambda _: diffusion(Pixels(), every_stage.CONDITIONS["joint"](), ModulatedMLP(16, 2)),
    "mlp_online": lambda n: diffusion(Pixels(), RepresentationCondition(encoder=online(n)), ModulatedMLP(16, 2)),
    "dit": lambda _: diffusion(Pixels(), every_stage.CONDITIONS["cluster"](), DiT(2, 16, 2, 2)),
    "repa": lambda n: aligned(n),
    "unet": lambda _: diffusion(Pixels(), RepresentationCondition(), UNet(**UNET)),
    "ldm": lambda n: diffusion(VQLatents(n.vqgan, stored=False), ClassCondition(), CrossAttentionUNet(**UNET)),
    "kl": lambda n: diffusion(KLLatents(n.kl, stored=False), ClassCondition(), DiT(2, 16, 2, 2)),
    "masked": lambda _: every_stage.masked(False),
    "mage": mage,
    "gan": lambda _: every_stage.gan(False),
    "cgan": lambda _: cgan(),
    "icgan": lambda _: icgan(),
    "stylegan2": lambda _: stylegan2(),
}
STORED = {"rdm", "mlp", "dit", "unet"}  # these read stored columns
NEIGHBOURS = {"icgan", "stylegan2"}
PRIORS = {
    "mlp": "rdm",
    "unet": "rdm",
    "icgan": "rdm",
    "stylegan2": "rdm",
    "mlp_online": "rdm_online",
    "mage": "rdm_online",
}
AUTOENCODERS = {"mage": "tokenizer", "ldm": "vqgan", "kl": "kl"}
GUIDED = {"rdm", "mlp", "mlp_online", "dit", "unet", "ldm", "kl", "mage"}
GENERATORS = [*sorted(GUIDED), "rdm_online", "repa", "gan", "cgan", "icgan", "stylegan2"]
