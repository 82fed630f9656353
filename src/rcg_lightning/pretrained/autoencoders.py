"""Frozen autoencoders, between images in [0, 1] and latents or tokens."""

from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rcg_lightning.artifacts import fingerprint
from rcg_lightning.config import describe
from rcg_lightning.core.precision import FrozenPrecision, frozen_precision, with_precision
from rcg_lightning.networks.vqgan import VQNetwork
from rcg_lightning.pretrained.frozen import Frozen
from rcg_lightning.pretrained.kl_checkpoints import load_kl
from rcg_lightning.pretrained.network_folder import load_network, state_fingerprint
from rcg_lightning.types import require


def autoencoder_settings(network: VQNetwork) -> dict[str, Any]:
    """Return the settings in an autoencoder's network folder, for ``save_network``."""
    return {"kind": "vq", "image_range": list(network.image_range)}


class Autoencoder:
    """A frozen autoencoder, read at its first use.

    Args:
        precision: ``highest`` is float32; the nearest codes are found in float32 always.
    """

    def __init__(self, precision: FrozenPrecision = "highest") -> None:
        self._frozen = Frozen(self._make, precision)
        self._range = (-1.0, 1.0)  # black and white in the network's units
        self._identity: str | None = None

    @abstractmethod
    def load(self) -> tuple[nn.Module, tuple[float, float]]:
        """Return the network and its values of black and white; raise UserError if it is of another kind."""

    @abstractmethod
    def structure(self) -> Any:
        """Describe the network without its weights, in plain data."""

    @abstractmethod
    def shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return the shape (D, h, w) of the latent of images (C, H, W); raise UserError if they do not fit."""

    def _make(self) -> nn.Module:
        module, self._range = self.load()
        return module

    @property
    def network(self) -> nn.Module:
        """The network; reads it at the first use."""
        return self._frozen.module

    @property
    def identity(self) -> str:
        """A short hash of weights, structure and image range; below full float32 the precision follows it."""
        if self._identity is None:
            weights = state_fingerprint(self.network.state_dict())
            parts = {"network": self.structure(), "weights": weights, "image_range": list(self._range)}
            self._identity = fingerprint(parts)
        return with_precision(self._identity, self.precision)

    @property
    def precision(self) -> FrozenPrecision:
        """In what the network computes; may be set at any time."""
        return self._frozen.precision or "highest"

    @precision.setter
    def precision(self, precision: FrozenPrecision) -> None:
        self._frozen.precision = precision

    def release(self) -> None:
        """Free the network's memory."""
        self._frozen.release()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Autoencoder":
        return self

    def _to_network(self, image: Tensor) -> Tensor:
        low, high = self._range
        return image * (high - low) + low

    def _to_image(self, values: Tensor) -> Tensor:
        low, high = self._range
        return ((values.float() - low) / (high - low)).clamp(0, 1)


class VQAutoencoder(Autoencoder):
    """An autoencoder with a codebook, from a network folder.

    Args:
        folder: written by ``save_network`` with ``autoencoder_settings``.
        precision: see ``Autoencoder``.
    """

    def __init__(self, folder: Path, precision: FrozenPrecision = "highest") -> None:
        super().__init__(precision)
        self.folder = Path(folder)

    def load(self) -> tuple[nn.Module, tuple[float, float]]:
        network, settings = load_network(self.folder)
        where = f"the network in {self.folder} is a {type(network).__name__}"
        require(isinstance(network, VQNetwork), f"{where}, which has no codebook: give the folder of a tokenizer")
        low, high = settings.get("image_range", network.image_range)  # type: ignore[union-attr]
        return network, (float(low), float(high))

    @property
    def network(self) -> VQNetwork:
        return self._frozen.module  # type: ignore[return-value]

    def structure(self) -> Any:
        return describe(self.network)

    def shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        return self.network.shape(image_shape)

    @property
    def codes(self) -> int:
        """Number of codes."""
        return self.network.codes

    def encode(self, image: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> latents (B, D, h, w), before quantisation."""
        return self._frozen.apply(lambda network, x: network.encode(self._to_network(x)), image)

    def tokens(self, image: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> indices (B, h w) int64, row by row."""

        def nearest(network: VQNetwork, x: Tensor) -> Tensor:
            return quantised(network, network.encode(self._to_network(x)))[1].flatten(1)

        return self._frozen.apply(nearest, image)

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, D, h, w) -> images (B, C, H, W) in [0, 1]; quantises first."""
        return self._frozen.apply(lambda network, x: self._to_image(network.decode(quantised(network, x)[0])), z)

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        """Indices (B, h, w) int64 -> images (B, C, H, W) in [0, 1]."""
        return self._frozen.apply(lambda network, x: self._to_image(network.decode(network.lookup(x))), tokens)


def quantised(network: VQNetwork, z: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise latents (B, D, h, w) as ``network`` does, in full float32: in less another code may seem the nearest."""
    with frozen_precision("highest", z.device):
        return network.quantise(z.float())


class KLAutoencoder(Autoencoder):
    """An autoencoder that predicts mean and deviation of a latent, such as Stable Diffusion's; diffusers reads it.

    Args:
        source: see ``load_kl``.
        precision: see ``Autoencoder``.
    """

    def __init__(self, source: Path | str, precision: FrozenPrecision = "highest") -> None:
        super().__init__(precision)
        self.source = source

    def load(self) -> tuple[nn.Module, tuple[float, float]]:
        # inside another module: diffusers' own ``to`` warns although nothing is wrong
        return nn.Sequential(load_kl(self.source)), (-1.0, 1.0)

    @property
    def network(self) -> nn.Module:
        return self._frozen.module[0]  # type: ignore[index]

    def structure(self) -> Any:
        config: Any = self.network.config
        names = ("in_channels", "block_out_channels", "layers_per_block", "latent_channels", "norm_num_groups")
        return {name: config[name] for name in names}

    def shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        config: Any = self.network.config
        channels, height, width = image_shape
        factor, expected = 2 ** (len(config.block_out_channels) - 1), config.in_channels
        require(channels == expected, f"the autoencoder reads images of {expected} channels, the data has {channels}")
        require(
            height % factor == 0 and width % factor == 0,
            f"the autoencoder takes images whose sides {factor} divides, not {height}x{width}: resize or crop them",
        )
        return config.latent_channels, height // factor, width // factor

    def moments(self, image: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> means, then standard deviations of their latents, (B, 2 D, h, w)."""

        def encode(network: Any, x: Tensor) -> Tensor:
            posterior = network[0].encode(self._to_network(x)).latent_dist
            return torch.cat([posterior.mean, posterior.std], dim=1)

        return self._frozen.apply(encode, image)

    def decode(self, z: Tensor) -> Tensor:
        """Unscaled latents (B, D, h, w) -> images (B, C, H, W) in [0, 1]."""
        return self._frozen.apply(lambda network, x: self._to_image(network[0].decode(x).sample), z)
