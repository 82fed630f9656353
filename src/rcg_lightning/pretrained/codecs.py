"""The spaces that generators model: pixels, representations, and an autoencoder's tokens or latents."""

from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rcg_lightning.arguments import PositiveFloat
from rcg_lightning.config import HubName
from rcg_lightning.core.counter_rng import LATENT_STREAM, SeededNoise
from rcg_lightning.core.precision import FrozenPrecision
from rcg_lightning.pretrained.autoencoder_codec import AutoencoderCodec
from rcg_lightning.pretrained.autoencoders import KLAutoencoder, VQAutoencoder
from rcg_lightning.pretrained.encoders import Encoder
from rcg_lightning.types import Batch, Codec, DataSpec, require


class Pixels(Codec):
    """The image itself, in [-1, 1]."""

    def shape(self, spec: DataSpec) -> tuple[int, ...]:
        return spec.image

    def encode(self, batch: Batch) -> Tensor:
        """``batch["image"]`` in [0, 1] -> z (B, C, H, W) in [-1, 1]."""
        return batch["image"] * 2 - 1  # type: ignore[reportTypedDictNotRequiredAccess]

    def decode(self, z: Tensor) -> Tensor:
        """z (B, C, H, W) -> image clamped to [0, 1]."""
        return ((z + 1) / 2).clamp(0, 1)


class Representations(Codec):
    """Representations, stored with the data or encoded from the images of each batch.

    Args:
        encoder: for data without stored representations.
    """

    makes = "representation"
    stream = 1
    tile = 4096  # its networks are small: a GPU waits for launches in smaller tiles

    def __init__(self, encoder: Encoder | None = None) -> None:
        self.encoder = encoder
        self.needs = frozenset({"representation"} if encoder is None else {"image"})

    def shape(self, spec: DataSpec) -> tuple[int, ...]:
        if self.encoder is not None and not spec.encoded_online:
            return (self.encoder.dim,)
        require(
            "representation" in spec.columns,
            "the data has no stored representations: extract them into a store and join it, or give an encoder",
        )
        return tuple(spec.columns["representation"]["shape"])

    def encode(self, batch: Batch) -> Tensor:
        """Return the stored representations (B, R), else those of ``batch["image"]``."""
        stored = batch.get("representation")
        if stored is not None:
            return stored
        require(self.encoder is not None, "the batch has no representations: join their store, or give an encoder")
        with torch.no_grad():
            return self.encoder(batch["image"])  # type: ignore[misc]

    def decode(self, z: Tensor) -> Tensor:
        """Return the representations unchanged: no image is made of them here."""
        return z


class VQTokens(AutoencoderCodec[VQAutoencoder]):
    """Indices into a codebook, row by row, (B, h w) int64: the tokens of MAGE."""

    column = "tokens"

    def open(self, folder: Path) -> VQAutoencoder:
        return VQAutoencoder(folder, self.precision)

    def encoded(self, image: Tensor) -> Tensor:
        return self.autoencoder.tokens(image)

    def packed(self, values: Tensor) -> Tensor:
        return values.to(torch.uint16 if self.autoencoder.codes <= 2**16 else torch.int32)

    def column_spec(self, image_shape: tuple[int, int, int]) -> dict[str, Any]:
        return {"shape": [prod(self.autoencoder.shape(image_shape)[1:])], "count": self.autoencoder.codes}

    def shape_of(self, column: dict[str, Any]) -> tuple[int, ...]:
        unclear = "the stored tokens lack their number of codes: extract them again, with rcg extract"
        require("count" in column and len(column["shape"]) == 1, unclear)
        return super().shape_of(column)

    def check(self, autoencoder: VQAutoencoder, where: str) -> None:
        super().check(autoencoder, where)
        expected, codes = self.spec.columns.get(self.column, {}).get("count"), autoencoder.codes
        require(
            expected in (None, codes),
            f"{where} has {codes} codes, but {expected} were used for the tokens here: give their autoencoder",
        )

    def decode(self, z: Tensor) -> Tensor:
        """Tokens (B, h w) int64 -> images (B, C, H, W) in [0, 1]."""
        _, *grid = self.autoencoder.shape(self.spec.image)
        return self.autoencoder.decode_tokens(z.unflatten(1, grid))


class VQLatents(AutoencoderCodec[VQAutoencoder]):
    """Latents (B, D, h, w) of a VQ autoencoder, before quantisation; decoding quantises first (LDM)."""

    column = "latent"

    def open(self, folder: Path) -> VQAutoencoder:
        return VQAutoencoder(folder, self.precision)

    def encoded(self, image: Tensor) -> Tensor:
        return self.autoencoder.encode(image)

    def column_spec(self, image_shape: tuple[int, int, int]) -> dict[str, Any]:
        return {"shape": list(self.autoencoder.shape(image_shape))}

    def shape_of(self, column: dict[str, Any]) -> tuple[int, ...]:
        require(not column.get("moments"), "the stored latents are means and deviations: they are for KLLatents")
        return super().shape_of(column)

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, D, h, w) -> images (B, C, H, W) in [0, 1]."""
        return self.autoencoder.decode(z)


class KLLatents(AutoencoderCodec[KLAutoencoder]):
    """Latents (B, D, h, w) sampled from a KL autoencoder's posterior of an image, times ``scale`` (LDM, DiT).

    A store holds means and standard deviations, so that each epoch samples again. Outside of training the noise is a
    hash of the image's index.

    Args:
        folder: of the autoencoder in diffusers' layout, or its file in the original layout.
        stored: see ``AutoencoderCodec``.
        hub: instead of a folder, the name on the Hugging Face hub, such as stabilityai/sd-vae-ft-ema; like the
            folder never part of a checkpoint.
        scale: about 1 over the standard deviation of all latents.
        precision: see ``AutoencoderCodec``.
    """

    column = "latent"

    def __init__(
        self,
        folder: Path | None = None,
        stored: bool = True,
        hub: HubName | None = None,
        scale: PositiveFloat = 0.18215,
        precision: FrozenPrecision = "highest",
    ) -> None:
        super().__init__(folder, stored, precision)
        self.hub, self.scale = hub, scale
        if folder is None and hub is not None:
            self._autoencoder = KLAutoencoder(hub, precision)

    def open(self, folder: Path) -> KLAutoencoder:
        folder = Path(folder)
        on_hub = len(folder.parts) == 2 and not folder.is_absolute() and not folder.exists()
        return KLAutoencoder(str(folder) if on_hub else folder, self.precision)

    def encoded(self, image: Tensor) -> Tensor:
        return self.autoencoder.moments(image)

    def column_spec(self, image_shape: tuple[int, int, int]) -> dict[str, Any]:
        dim, *grid = self.autoencoder.shape(image_shape)
        return {"shape": [2 * dim, *grid], "moments": True}

    def shape_of(self, column: dict[str, Any]) -> tuple[int, ...]:
        require(
            bool(column.get("moments")),
            "the stored latents are not the means and deviations of a KL autoencoder: they are for VQLatents",
        )
        dim, *grid = column["shape"]
        return (dim // 2, *grid)

    def from_stored(self, values: Tensor, batch: Batch) -> Tensor:
        mean, deviation = values.chunk(2, dim=1)  # (B, D, h, w) each
        if torch.is_grad_enabled():
            noise = torch.randn_like(mean)
        else:
            noise = SeededNoise(batch["index"], LATENT_STREAM).normal(0, *mean.shape[1:]).to(mean)
        return (mean + deviation * noise) * self.scale

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, D, h, w), scaled -> images (B, C, H, W) in [0, 1]."""
        return self.autoencoder.decode(z / self.scale)
