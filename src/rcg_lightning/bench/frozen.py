"""Frozen networks at their official sizes, with random weights: the work that a store saves in a training step."""

import importlib.util
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rcg_lightning.networks.heads import Projected, ProjectionHead
from rcg_lightning.networks.vit import VisionTransformer
from rcg_lightning.networks.vqgan import MaskGITVQGAN
from rcg_lightning.pretrained.autoencoders import KLAutoencoder, VQAutoencoder
from rcg_lightning.pretrained.encoders import Encoder, LoadedEncoder
from rcg_lightning.pretrained.preprocess import Preprocess

DIM = 256  # of a representation


class RandomViT(Encoder):
    """MoCo v3's ViT-B with its head, as in the official file."""

    backbone: VisionTransformer

    def load(self) -> LoadedEncoder:
        self.backbone = VisionTransformer()
        network = Projected(self.backbone, ProjectionHead(768, 4096, DIM))
        return LoadedEncoder(network, Preprocess(size=224), DIM, {}, {})


class RandomTokenizer(VQAutoencoder):
    """MaskGIT's VQGAN."""

    def __init__(self) -> None:
        super().__init__(Path("random weights"))

    def load(self) -> tuple[nn.Module, tuple[float, float]]:
        return MaskGITVQGAN(), MaskGITVQGAN.image_range


class RandomKL(KLAutoencoder):
    """Stable Diffusion's KL-f8."""

    def __init__(self) -> None:
        super().__init__("random weights")

    def load(self) -> tuple[nn.Module, tuple[float, float]]:
        from diffusers import AutoencoderKL

        blocks = len(widths := (128, 256, 512, 512))
        kind: Any = AutoencoderKL
        network = kind(
            block_out_channels=widths,
            down_block_types=("DownEncoderBlock2D",) * blocks,
            up_block_types=("UpDecoderBlock2D",) * blocks,
            layers_per_block=2,
            latent_channels=4,
        )
        return nn.Sequential(network), (-1.0, 1.0)

    @staticmethod
    def available() -> bool:
        """Whether diffusers is installed, an extra of this package."""
        return importlib.util.find_spec("diffusers") is not None


class FrozenNetworks:
    """Computes the columns of a store from random images; images and networks are created at the first use.

    Args:
        batch: number of images, 256 x 256.
        autoencoder: for tokens or latents as well.
        device: of the images.
        at_once: number of images encoded together.
    """

    def __init__(
        self,
        batch: int,
        device: torch.device,
        autoencoder: RandomTokenizer | RandomKL | None = None,
        at_once: int = 16,
    ) -> None:
        self.batch, self.device, self.autoencoder, self.at_once = batch, device, autoencoder, at_once
        self.encoder = RandomViT()

    @cached_property
    def images(self) -> Tensor:
        """Random images (B, 3, 256, 256) in [0, 1]."""
        return torch.rand(self.batch, 3, 256, 256, device=self.device)

    def __call__(self) -> dict[str, Tensor]:
        parts = [self._columns(part) for part in self.images.split(self.at_once)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def networks(self) -> list[nn.Module]:
        """Return the networks that have a baseline of their own."""
        self.encoder.setup()
        return [self.encoder.backbone]

    def _columns(self, images: Tensor) -> dict[str, Tensor]:
        columns = {"representation": self.encoder(images)}
        if isinstance(self.autoencoder, RandomTokenizer):
            columns["tokens"] = self.autoencoder.tokens(images)
        elif self.autoencoder is not None:
            columns["latent"] = self.autoencoder.moments(images)
        return columns
