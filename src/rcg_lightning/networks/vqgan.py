"""Vector-quantising autoencoders: images as grids of codes (MaskGIT's VQGAN, and that of Esser et al. in LDM)."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

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

_AT_ONCE = 2**28  # distances to codes that are held together, 1 GB


class VQNetwork(ConfigMixin, nn.Module):
    """Encoder, codebook and decoder. Every level after the first has maps of half the size.

    Args:
        channels: of a image.
        width: base number of channels.
        multipliers: channels of each level over ``width``, the largest maps first.
        blocks: residual blocks of a level.
        codes: how many there are.
        dim: numbers of a code.
        groups: of the norms; it divides the channels of every level.
        checkpointing: compute activations twice and keep few of them: less memory, a third more time.
    """

    image_range: ClassVar[tuple[float, float]]  # values of black and white in images read and made

    def __init__(
        self,
        channels: int,
        width: int,
        multipliers: Sequence[int],
        blocks: int,
        codes: int,
        dim: int,
        groups: int,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        require(
            bool(multipliers) and all(width * factor % groups == 0 for factor in [1, *multipliers]),
            f"an autoencoder has levels whose channels are divisible by its {groups} groups, not {width} times "
            f"{list(multipliers)}: set another width or number of groups",
        )
        require(blocks > 0 and codes > 1 and dim > 0, "an autoencoder has at least 1 block a level, 2 codes, 1 number")
        self.channels, self.blocks, self.codes, self.dim, self.groups = channels, blocks, codes, dim, groups
        self.width, self.widths = width, [width * factor for factor in multipliers]
        self.encoder, self.decoder = self.make_encoder(), self.make_decoder()
        self.checkpointing = self.encoder.checkpointing = self.decoder.checkpointing = checkpointing
        self.codebook = nn.Embedding(codes, dim)
        nn.init.uniform_(self.codebook.weight, -1 / codes, 1 / codes)  # as VQ-VAE has it

    # -- what kinds of autoencoders differ in --------------------------------------------------------------------------

    @abstractmethod
    def block(self, channels: int, out: int) -> nn.Module:
        """A residual block, from ``channels`` to ``out``."""

    @abstractmethod
    def halving(self, channels: int) -> nn.Module:
        """What halves a map."""

    @abstractmethod
    def ends(self) -> tuple[nn.Module, nn.Module]:
        """The first and the last convolution of the encoder: image to ``width``, ``widths[-1]`` to ``dim``."""

    def attends(self, level: int) -> bool:
        """Whether the maps of a level have attention."""
        return False

    def middle(self) -> list[nn.Module]:
        """Blocks on the smallest maps."""
        return [self.block(self.widths[-1], self.widths[-1]) for _ in range(2)]

    # -- both halves ---------------------------------------------------------------------------------------------------

    def make_encoder(self) -> Encoder:
        """Return an encoder from a image to maps of ``dim`` channels."""
        before, last = [self.width, *self.widths], len(self.widths) - 1
        levels = [
            self.level(before[i], out, self.blocks, i, self.halving(out) if i < last else nn.Identity())
            for i, out in enumerate(self.widths)
        ]
        in_conv, out_conv = self.ends()
        return Encoder(in_conv, levels, self.middle(), nn.GroupNorm(self.groups, self.widths[-1], EPS), out_conv)

    def make_decoder(self) -> Decoder:
        """Return a decoder from maps of ``dim`` channels to a image."""
        before, first = [*self.widths[1:], self.widths[-1]], self.widths[0]
        levels = [
            self.level(before[i], out, self.decoder_blocks, i, doubling(out) if i else nn.Identity())
            for i, out in enumerate(self.widths)
        ]
        in_conv = nn.Conv2d(self.dim, self.widths[-1], 3, padding=1)
        out_conv = nn.Conv2d(first, self.channels, 3, padding=1)
        return Decoder(in_conv, levels, self.middle(), nn.GroupNorm(self.groups, first, EPS), out_conv)

    def level(self, channels: int, out: int, blocks: int, number: int, resize: nn.Module) -> Level:
        """One level, from ``channels`` to ``out``."""
        attentions = [attention(out, self.groups) for _ in range(blocks)] if self.attends(number) else []
        first, rest = self.block(channels, out), [self.block(out, out) for _ in range(blocks - 1)]
        return Level([first, *rest], attentions, resize)

    # -- use -----------------------------------------------------------------------------------------------------------

    @property
    def decoder_blocks(self) -> int:
        """Residual blocks of a level of the decoder."""
        return self.blocks

    @property
    def factor(self) -> int:
        """Side of a image over the side of its latent."""
        return 2 ** (len(self.widths) - 1)

    def shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return the shape (D, h, w) of the latent of images (C, H, W).

        Raises:
            UserError: such images do not fit.
        """
        channels, height, width = image_shape
        require(
            channels == self.channels,
            f"the autoencoder reads images of {self.channels} channels, the data have {channels}",
        )
        fits = height % self.factor == 0 and width % self.factor == 0 and min(height, width) > 0
        require(
            fits,
            f"the autoencoder halves images {len(self.widths) - 1} times, so it takes sides that {self.factor} "
            f"divides, not {height}x{width}: resize or crop them",
        )
        return self.dim, height // self.factor, width // self.factor

    def encode(self, image: Tensor) -> Tensor:
        """Images (B, C, H, W) in ``image_range`` -> latents (B, D, h, w), before quantisation."""
        return self.encoder(image)

    def quantise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (B, D, h, w) -> the nearest codes, as latents (B, D, h, w) and as indices (B, h, w) int64.

        A gradient reaches the codes, not z: what else is wanted is up to training.
        """
        rows = z.detach().permute(0, 2, 3, 1).reshape(-1, self.dim).to(self.codebook.weight.dtype)  # (B h w, D)
        codes = self.codebook.weight.detach()
        sizes = codes.square().sum(1)  # |z - e|² without |z|², which is the same for every code
        nearest = [
            torch.addmm(sizes, part, codes.T, alpha=-2).argmin(1) for part in rows.split(max(_AT_ONCE // self.codes, 1))
        ]
        indices = torch.cat(nearest).view(len(z), *z.shape[2:])
        return self.lookup(indices), indices

    def lookup(self, indices: Tensor) -> Tensor:
        """Indices (B, h, w) int64 -> their codes as latents (B, D, h, w)."""
        return self.codebook(indices).permute(0, 3, 1, 2)

    def decode(self, z: Tensor) -> Tensor:
        """Quantised latents (B, D, h, w) -> images (B, C, H, W) around ``image_range``, not clamped."""
        return self.decoder(z)

    def forward(self, image: Tensor) -> Tensor:
        """Images (B, C, H, W) in ``image_range`` -> what remains of them."""
        return self.decode(self.quantise(self.encode(image))[0])


class MaskGITVQGAN(VQNetwork):
    """The tokenizer of MaskGIT (Chang et al. 2022) that MAGE uses: images in [0, 1], no attention.

    Maps shrink by 2 x 2 means. Defaults are those of the official 256-pixel one, which makes 16 x 16 tokens. Agrees
    with RCG's ``vqgan``.
    """

    image_range = (0.0, 1.0)

    def __init__(
        self,
        channels: int = 3,
        width: int = 128,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        blocks: int = 2,
        codes: int = 1024,
        dim: int = 256,
        groups: int = 32,
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

    Maps shrink by strided convolutions, and the decoder has one block more in each level. Defaults are those of VQ-f8,
    which makes 32 x 32 latents of 4 channels. Agrees with RCG's LDM.

    Args:
        attention: side of the image over the side of the maps that have attention, besides the blocks in the middle.
    """

    image_range = (-1.0, 1.0)

    def __init__(
        self,
        channels: int = 3,
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 4),
        blocks: int = 2,
        codes: int = 16384,
        dim: int = 4,
        groups: int = 32,
        attention: Sequence[int] = (8,),
        checkpointing: bool = False,
    ) -> None:
        self.attention = set(attention)
        super().__init__(channels, width, multipliers, blocks, codes, dim, groups, checkpointing)
        self.before_codes, self.after_codes = nn.Conv2d(dim, dim, 1), nn.Conv2d(dim, dim, 1)

    @property
    def decoder_blocks(self) -> int:
        return self.blocks + 1

    def block(self, channels: int, out: int) -> nn.Module:
        return ResidualBlock(channels, out, self.groups)

    def halving(self, channels: int) -> nn.Module:
        return StridedConvolution(channels)

    def ends(self) -> tuple[nn.Module, nn.Module]:
        first = nn.Conv2d(self.channels, self.width, 3, padding=1)
        return first, nn.Conv2d(self.widths[-1], self.dim, 3, padding=1)

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
    """Attention of one head, as the official autoencoders have it."""
    return AttentionBlock(channels, 1, groups, EPS)
