"""Blocks of convolutional autoencoders: residual blocks, levels of one map size, encoder and decoder."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from rcg_lightning.networks.layers import run_block

EPS = 1e-6  # of every norm in this file, as in the official code


class ResidualBlock(nn.Module):
    """GroupNorm-SiLU-convolution twice; residual, with a 1 x 1 convolution if the number of channels changes."""

    def __init__(self, channels: int, out_channels: int, groups: int, bias: bool = True) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels, EPS)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1, bias=bias)
        self.norm2 = nn.GroupNorm(groups, out_channels, EPS)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=bias)
        self.skip = nn.Conv2d(channels, out_channels, 1) if channels != out_channels else nn.Identity()

    def branch(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, O, H, W), without the shortcut."""
        h = self.conv1(F.silu(self.norm1(x)))  # (B, O, H, W)
        return self.conv2(F.silu(self.norm2(h)))

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.branch(x)


class SelfSkippingBlock(ResidualBlock):
    """The block of MaskGIT's VQGAN: no biases, and if the number of channels changes, no shortcut from the input.

    Then the 1 x 1 convolution acts on the branch's own output: h + skip(h).
    """

    def __init__(self, channels: int, out_channels: int, groups: int) -> None:
        super().__init__(channels, out_channels, groups, bias=False)
        self.changes_channels = channels != out_channels
        if self.changes_channels:
            self.skip = nn.Conv2d(out_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.branch(x)  # (B, O, H, W)
        return h + (self.skip(h) if self.changes_channels else x)


class StridedConvolution(nn.Conv2d):
    """3 x 3 convolution that halves a map; only the lower and the right border are padded."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(F.pad(x, (0, 1, 0, 1)))


def doubling(channels: int) -> nn.Module:
    """Return layers that double a map: each value four times, then a 3 x 3 convolution."""
    return nn.Sequential(nn.Upsample(scale_factor=2.0), nn.Conv2d(channels, channels, 3, padding=1))


class Level(nn.Module):
    """Blocks on maps of one size, with attention after each or after none, then a change of size.

    Args:
        blocks: residual blocks.
        attentions: one for each block, or none at all.
        resize: halves or doubles the map at the end, or is the identity.
    """

    def __init__(self, blocks: Sequence[nn.Module], attentions: Sequence[nn.Module], resize: nn.Module) -> None:
        super().__init__()
        self.blocks, self.attentions = nn.ModuleList(blocks), nn.ModuleList(attentions)
        self.resize = resize

    def forward(self, x: Tensor) -> Tensor:
        for number, block in enumerate(self.blocks):
            x = block(x)
            if len(self.attentions):
                x = self.attentions[number](x)
        return self.resize(x)


class Half(nn.Module):
    """Encoder or decoder: a convolution, levels of all map sizes, a norm and a convolution.

    With ``checkpointing`` the activations inside a level are recomputed in the backward pass instead of stored.

    Args:
        in_conv: reads the image or the latent.
        levels: sorted by the size of their maps, the largest first, in the encoder and in the decoder.
        middle: blocks on the smallest maps.
        out_norm: norm of the last map.
        out_conv: outputs the latent or the image.
    """

    checkpointing = False

    def __init__(
        self,
        in_conv: nn.Module,
        levels: Sequence[Level],
        middle: Sequence[nn.Module],
        out_norm: nn.Module,
        out_conv: nn.Module,
    ) -> None:
        super().__init__()
        self.in_conv, self.levels, self.middle = in_conv, nn.ModuleList(levels), nn.Sequential(*middle)
        self.out_norm, self.out_conv = out_norm, out_conv

    def path(self) -> list[nn.Module]:
        """Return the modules that a map passes, in order."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        x = self.in_conv(x)
        for part in self.path():
            x = run_block(part, x, checkpointing=self.checkpointing)
        return self.out_conv(F.silu(self.out_norm(x)))


class Encoder(Half):
    """Image -> latent; maps shrink from level to level."""

    def path(self) -> list[nn.Module]:
        return [*self.levels, self.middle]


class Decoder(Half):
    """Latent -> image; maps grow from level to level."""

    def path(self) -> list[nn.Module]:
        return [self.middle, *reversed(self.levels)]
