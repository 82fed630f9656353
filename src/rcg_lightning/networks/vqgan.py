"""Vector-quantised autoencoders: MaskGIT's VQGAN, and the VQGAN of Esser et al. as used in LDM."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from rcg_lightning.arguments import Count, Depth, Multiplier, PositiveInt, Width
from rcg_lightning.config import ConfigMixin
from rcg_lightning.networks.autoencoder_blocks import (
    EPS,
    Decoder,
    Encoder,
    Level,
    ResidualBlock,
    SelfSkippingBlock,
    StridedConvolution,
    doubling,
)
from rcg_lightning.networks.unet_blocks import AttentionBlock
from rcg_lightning.types import require

_MAX_DISTANCES = 2**28  # distances to codes that are in memory at a time, 1 GB


class VQNetwork(ConfigMixin, nn.Module):
    """Encoder, codebook and decoder. Every level after the first has maps of half the size.

    Args:
        channels: channels of an image.
        width: base number of channels.
        multipliers: channels of each level over ``width``, the largest maps first.
        blocks: residual blocks of a level.
        codes: size of the codebook.
        dim: dimensions of a code.
        groups: groups of the norms; must divide the channels of every level.
        checkpointing: recompute activations in the backward pass instead of storing them: less memory, a third slower.
    """

    image_range: ClassVar[tuple[float, float]]  # values of black and white in encoded and decoded images

    def __init__(
        self,
        channels: Width,
        width: Width,
        multipliers: Sequence[Multiplier],
        blocks: Depth,
        codes: Count,
        dim: Width,
        groups: Width,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        require(
            bool(multipliers) and all(width * factor % groups == 0 for factor in [1, *multipliers]),
            f"every level of an autoencoder needs channels divisible by its {groups} groups, not {width} times "
            f"{list(multipliers)}: set another width or number of groups",
        )
        require(codes > 1, f"{type(self).__name__}: codes should be at least 2, not {codes}")
        self.channels, self.blocks, self.codes, self.dim, self.groups = channels, blocks, codes, dim, groups
        self.width, self.widths = width, [width * factor for factor in multipliers]
        self.encoder, self.decoder = self.make_encoder(), self.make_decoder()
        self.checkpointing = self.encoder.checkpointing = self.decoder.checkpointing = checkpointing
        self.codebook = nn.Embedding(codes, dim)
        nn.init.uniform_(self.codebook.weight, -1 / codes, 1 / codes)  # as in VQ-VAE

    # -- differences between autoencoders ------------------------------------------------------------------------------

    @abstractmethod
    def block(self, channels: int, out: int) -> nn.Module:
        """Return a residual block from ``channels`` to ``out``."""

    @abstractmethod
    def halving(self, channels: int) -> nn.Module:
        """Return a layer that halves a map."""

    @abstractmethod
    def ends(self) -> tuple[nn.Module, nn.Module]:
        """Return the encoder's first and last convolution: image to ``width``, ``widths[-1]`` to ``map_channels``."""

    def attends(self, level: int) -> bool:
        """Whether the maps of a level have attention."""
        return False

    def middle(self) -> list[nn.Module]:
        """Return the blocks on the smallest maps."""
        return [self.block(self.widths[-1], self.widths[-1]) for _ in range(2)]

    # -- encoder and decoder -------------------------------------------------------------------------------------------

    def make_encoder(self) -> Encoder:
        """Return an encoder from an image to maps of ``map_channels``."""
        before, last = [self.width, *self.widths], len(self.widths) - 1
        levels = [
            self.level(before[i], out, self.blocks, i, self.halving(out) if i < last else nn.Identity())
            for i, out in enumerate(self.widths)
        ]
        in_conv, out_conv = self.ends()
        return Encoder(in_conv, levels, self.middle(), nn.GroupNorm(self.groups, self.widths[-1], EPS), out_conv)

    def make_decoder(self) -> Decoder:
        """Return a decoder from maps of ``map_channels`` to an image."""
        before, first = [*self.widths[1:], self.widths[-1]], self.widths[0]
        levels = [
            self.level(before[i], out, self.decoder_blocks, i, doubling(out) if i else nn.Identity())
            for i, out in enumerate(self.widths)
        ]
        in_conv = nn.Conv2d(self.map_channels, self.widths[-1], 3, padding=1)
        out_conv = nn.Conv2d(first, self.channels, 3, padding=1)
        return Decoder(in_conv, levels, self.middle(), nn.GroupNorm(self.groups, first, EPS), out_conv)

    def level(self, channels: int, out: int, blocks: int, number: int, resize: nn.Module) -> Level:
        """Return level ``number``, from ``channels`` to ``out``."""
        attentions = [attention(out, self.groups) for _ in range(blocks)] if self.attends(number) else []
        first, rest = self.block(channels, out), [self.block(out, out) for _ in range(blocks - 1)]
        return Level([first, *rest], attentions, resize)

    # -- use -----------------------------------------------------------------------------------------------------------

    @property
    def map_channels(self) -> int:
        """Channels of the maps that the encoder makes and the decoder reads."""
        return self.dim

    @property
    def decoder_blocks(self) -> int:
        """Residual blocks of a level of the decoder."""
        return self.blocks

    @property
    def factor(self) -> int:
        """Side of an image over the side of its latent."""
        return 2 ** (len(self.widths) - 1)

    def shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return the shape (D, h, w) of the latent of images (C, H, W).

        Raises:
            UserError: the network cannot encode such images.
        """
        channels, height, width = image_shape
        require(
            channels == self.channels,
            f"the autoencoder reads images of {self.channels} channels, the data have {channels}",
        )
        fits = height % self.factor == 0 and width % self.factor == 0 and min(height, width) > 0
        require(
            fits,
            f"the autoencoder halves images {len(self.widths) - 1} times, so {self.factor} must divide their sides, "
            f"not {height}x{width}: resize or crop them",
        )
        return self.dim, height // self.factor, width // self.factor

    def encode(self, image: Tensor) -> Tensor:
        """Images (B, C, H, W) in ``image_range`` -> latents (B, D, h, w), before quantisation."""
        return self.encoder(image)

    def quantise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (B, D, h, w) -> the nearest codes, as latents (B, D, h, w) and as indices (B, h, w) int64.

        The gradient reaches the codes but not z; a training stage adds its own straight-through estimate.
        """
        vectors = z.detach().permute(0, 2, 3, 1).reshape(-1, self.dim).to(self.codebook.weight.dtype)  # (B h w, D)
        codes = self.codebook.weight.detach()
        squared_norms = codes.square().sum(1)  # |z - e|² without |z|², which is the same for every code
        nearest = [
            torch.addmm(squared_norms, part, codes.T, alpha=-2).argmin(1)
            for part in vectors.split(max(_MAX_DISTANCES // self.codes, 1))
        ]
        indices = torch.cat(nearest).view(len(z), *z.shape[2:])
        return self.lookup(indices), indices

    def lookup(self, indices: Tensor) -> Tensor:
        """Indices (B, h, w) int64 -> their codes as latents (B, D, h, w)."""
        return self.codebook(indices).permute(0, 3, 1, 2)

    def decode(self, z: Tensor) -> Tensor:
        """Quantised latents (B, D, h, w) -> images (B, C, H, W), about ``image_range``, not clamped."""
        return self.decoder(z)

    def forward(self, image: Tensor) -> Tensor:
        """Images (B, C, H, W) in ``image_range`` -> reconstructions (B, C, H, W)."""
        return self.decode(self.quantise(self.encode(image))[0])


class MaskGITVQGAN(VQNetwork):
    """The tokenizer of MaskGIT (Chang et al. 2022) that MAGE uses: images in [0, 1], no attention.

    Maps are halved by 2 x 2 means. The defaults are those of the official tokenizer, which encodes 256 x 256 pixels as
    16 x 16 tokens. Agrees with RCG's ``vqgan``.
    """

    image_range = (0.0, 1.0)

    def __init__(
        self,
        channels: Width = 3,
        width: Width = 128,
        multipliers: Sequence[Multiplier] = (1, 1, 2, 2, 4),
        blocks: Depth = 2,
        codes: Count = 1024,
        dim: Width = 256,
        groups: Width = 32,
        checkpointing: bool = False,
    ) -> None:
        super().__init__(channels, width, multipliers, blocks, codes, dim, groups, checkpointing)

    def block(self, channels: int, out: int) -> nn.Module:
        return SelfSkippingBlock(channels, out, self.groups)

    def halving(self, channels: int) -> nn.Module:
        return nn.AvgPool2d(2)

    def ends(self) -> tuple[nn.Module, nn.Module]:
        first = nn.Conv2d(self.channels, self.width, 3, padding=1, bias=False)
        return first, nn.Conv2d(self.widths[-1], self.dim, 1)


class VQGAN(VQNetwork):
    """The autoencoder of Esser et al. 2021, as LDM's first stage: images in [-1, 1], attention on small maps.

    Maps are halved by strided convolutions, and the decoder has one more block in each level. The defaults are those of
    VQ-f8, which encodes 256 x 256 pixels as 32 x 32 latents of 4 channels. Agrees with RCG's LDM.

    Args:
        attention: side of the image over the side of the maps that have attention, in addition to the middle.
        z_channels: channels of the maps that the encoder makes and the decoder reads, where they are not ``dim``.
    """

    image_range = (-1.0, 1.0)

    def __init__(
        self,
        channels: Width = 3,
        width: Width = 128,
        multipliers: Sequence[Multiplier] = (1, 2, 2, 4),
        blocks: Depth = 2,
        codes: Count = 16384,
        dim: Width = 4,
        groups: Width = 32,
        attention: Sequence[PositiveInt] = (8,),
        checkpointing: bool = False,
        z_channels: Width | None = None,
    ) -> None:
        self.attention, self.z_channels = set(attention), z_channels
        super().__init__(channels, width, multipliers, blocks, codes, dim, groups, checkpointing)
        self.before_codes = nn.Conv2d(self.map_channels, dim, 1)
        self.after_codes = nn.Conv2d(dim, self.map_channels, 1)

    @property
    def map_channels(self) -> int:
        return self.z_channels or self.dim

    @property
    def decoder_blocks(self) -> int:
        return self.blocks + 1

    def block(self, channels: int, out: int) -> nn.Module:
        return ResidualBlock(channels, out, self.groups)

    def halving(self, channels: int) -> nn.Module:
        return StridedConvolution(channels)

    def ends(self) -> tuple[nn.Module, nn.Module]:
        first = nn.Conv2d(self.channels, self.width, 3, padding=1)
        return first, nn.Conv2d(self.widths[-1], self.map_channels, 3, padding=1)

    def attends(self, level: int) -> bool:
        return 2**level in self.attention

    def middle(self) -> list[nn.Module]:
        first, last = super().middle()
        return [first, attention(self.widths[-1], self.groups), last]

    def encode(self, image: Tensor) -> Tensor:
        return self.before_codes(self.encoder(image))

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(self.after_codes(z))


def attention(channels: int, groups: int) -> AttentionBlock:
    """Return attention with one head, as in the official autoencoders."""
    return AttentionBlock(channels, 1, groups, EPS)
