"""BigGAN (Brock et al. 2019) for images of 8 to 256 pixels, the first backbone of IC-GAN (Casanova et al. 2021)."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rcg_lightning.arguments import PositiveFloat, PositiveInt, Width
from rcg_lightning.networks.adversarial import DiscriminatorNetwork, GeneratorNetwork, NormalNoise, doublings
from rcg_lightning.networks.spectral import EPS, SpectralConv, SpectralLinear
from rcg_lightning.types import require

# channels before the first block and after each block, over the width, by the number of doublings of the smallest map
GENERATOR = {
    1: (4, 4),
    2: (4, 4, 4),
    3: (4, 4, 4, 4),
    4: (16, 16, 8, 4, 2),
    5: (16, 16, 8, 4, 2, 1),
    6: (16, 16, 8, 8, 4, 2, 1),
}
# channels after each block, likewise; small images are halved at most twice, others in every block but the last
DISCRIMINATOR = {
    1: (4, 4, 4, 4),
    2: (4, 4, 4, 4),
    3: (4, 4, 4, 4),
    4: (1, 2, 4, 8, 16),
    5: (1, 2, 4, 8, 16, 16),
    6: (1, 2, 4, 8, 8, 16, 16),
}
SMALL = 3  # doublings of an image of 32 pixels


class BatchNorm(nn.Module):
    """Batch normalisation with learned gain and bias: batch statistics in training, running statistics in evaluation.

    Args:
        channels: of the input.
    """

    mean: Tensor
    var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("var", torch.ones(channels))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, C, H, W), c (B, D), which is ignored -> (B, C, H, W)."""
        return F.batch_norm(x, self.mean, self.var, self.gain, self.bias, self.training)


class ConditionalBatchNorm(nn.Module):
    """Batch normalisation whose gain and bias are linear in the condition.

    Args:
        channels: of the input.
        condition_dim: width of the condition.
        eps: of the spectral normalisation.
    """

    mean: Tensor
    var: Tensor

    def __init__(self, channels: int, condition_dim: int, eps: float) -> None:
        super().__init__()
        self.gain = SpectralLinear(condition_dim, channels, bias=False, eps=eps)
        self.bias = SpectralLinear(condition_dim, channels, bias=False, eps=eps)
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("var", torch.ones(channels))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, C, H, W), c (B, condition_dim) -> (B, C, H, W)."""
        gain, bias = (1 + self.gain(c))[..., None, None], self.bias(c)[..., None, None]  # each (B, C, 1, 1)
        return F.batch_norm(x, self.mean, self.var, training=self.training) * gain + bias


def normalisation(channels: int, condition_dim: int, eps: float) -> nn.Module:
    """Return the norm of a block: conditional if there is a condition."""
    return ConditionalBatchNorm(channels, condition_dim, eps) if condition_dim else BatchNorm(channels)


class MapAttention(nn.Module):
    """Self-attention over a map, with keys and values from the halved map (SAGAN); starts as the identity."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        inner, values = max(1, channels // 8), max(1, channels // 2)
        self.query = SpectralConv(channels, inner, 1, bias=False, eps=eps)
        self.key = SpectralConv(channels, inner, 1, bias=False, eps=eps)
        self.value = SpectralConv(channels, values, 1, bias=False, eps=eps)
        self.out = SpectralConv(values, channels, 1, bias=False, eps=eps)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape; attention logits are not scaled."""
        key, value = F.max_pool2d(self.key(x), 2), F.max_pool2d(self.value(x), 2)  # (B, ., H / 2, W / 2)
        q, k, v = (m.flatten(2).transpose(1, 2)[:, None] for m in (self.query(x), key, value))  # each (B, 1, N, .)
        attended = F.scaled_dot_product_attention(q, k, v, scale=1.0)[:, 0]  # (B, N, C / 2)
        return x + self.gamma * self.out(attended.transpose(1, 2).unflatten(2, x.shape[2:]))


class GeneratorBlock(nn.Module):
    """BatchNorm-ReLU, doubling, convolution, BatchNorm-ReLU-convolution; residual; then optional attention."""

    def __init__(self, channels: int, out_channels: int, condition_dim: int, attends: bool, eps: float) -> None:
        super().__init__()
        self.norm1 = normalisation(channels, condition_dim, eps)
        self.conv1 = SpectralConv(channels, out_channels, eps=eps)
        self.norm2 = normalisation(out_channels, condition_dim, eps)
        self.conv2 = SpectralConv(out_channels, out_channels, eps=eps)
        self.shortcut = SpectralConv(channels, out_channels, 1, eps=eps)
        self.attention = MapAttention(out_channels, eps) if attends else nn.Identity()

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, C, H, W), c (B, condition_dim) -> (B, out, 2 H, 2 W)."""
        h = self.conv1(F.interpolate(F.relu(self.norm1(x, c)), scale_factor=2.0))  # (B, out, 2 H, 2 W)
        h = self.conv2(F.relu(self.norm2(h, c)))
        # the official code doubles before the 1 x 1 convolution: the same result for four times the work
        return self.attention(h + F.interpolate(self.shortcut(x), scale_factor=2.0))


class DiscriminatorBlock(nn.Module):
    """ReLU-convolution twice, then the mean of 2 x 2 if the block halves; residual; then optional attention."""

    def __init__(self, channels: int, out_channels: int, first: bool, halves: bool, attends: bool, eps: float) -> None:
        super().__init__()
        self.first, self.halves = first, halves
        self.conv1 = SpectralConv(channels, out_channels, eps=eps)
        self.conv2 = SpectralConv(out_channels, out_channels, eps=eps)
        changes = halves or channels != out_channels
        self.shortcut = SpectralConv(channels, out_channels, 1, eps=eps) if changes else nn.Identity()
        self.attention = MapAttention(out_channels, eps) if attends else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out, H / 2, W / 2), or (B, out, H, W) if the block does not halve."""
        h = self.conv2(F.relu(self.conv1(x if self.first else F.relu(x))))
        if self.halves:  # all official blocks but the first halve after the 1 x 1 convolution, with the same result
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        return self.attention(h + self.shortcut(x))


def doublings_of(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the side of the smallest map and the number of doublings from there to images of ``shape``."""
    bottom, count = doublings(shape, "BigGAN")
    require(count in GENERATOR, f"BigGAN generates images of 8 to 256 pixels a side, not {shape[1]}")
    return bottom, count


class BigGANGenerator(GeneratorNetwork):
    """Agrees with the official BigGAN generator of IC-GAN.

    Args:
        channels: width; the maps have 1 to 16 times this number of channels.
        noise_dim: dimensions of the noise; if hierarchical, rounded down to a multiple of blocks + 1.
        hierarchical: whether every block gets its own part of the noise together with the condition.
        attention: sides of the maps that self-attention follows.
        eps: of the spectral normalisation.
    """

    noise_distribution = NormalNoise()

    def __init__(
        self,
        channels: Width = 96,
        noise_dim: Width = 120,
        hierarchical: bool = True,
        attention: list[PositiveInt] | None = None,
        eps: PositiveFloat = EPS,
    ) -> None:
        super().__init__()
        self.channels, self.noise_dim, self.hierarchical = channels, noise_dim, hierarchical
        self.attention, self.eps = attention or [], eps

    def condition_width(self, shape: tuple[int, ...]) -> int:
        return 128

    def build(self, shape: tuple[int, ...], condition_dim: int) -> None:
        self.bottom, count = doublings_of(shape)
        widths = [self.channels * factor for factor in GENERATOR[count]]
        self.chunks = count + 1 if self.hierarchical else 1
        chunk = self.noise_dim // self.chunks
        require(chunk > 0, f"BigGAN splits its noise into {self.chunks} parts: noise_dim cannot be {self.noise_dim}")
        self.noise_dim = chunk * self.chunks
        block_dim = condition_dim + (chunk if self.hierarchical else 0)
        self.linear = SpectralLinear(chunk, widths[0] * self.bottom**2, eps=self.eps)
        attends = attended([self.bottom * 2 ** (i + 1) for i in range(count)], self.attention)
        self.blocks = nn.ModuleList(
            GeneratorBlock(before, after, block_dim, attend, self.eps)
            for (before, after), attend in zip(pairwise(widths), attends)
        )
        self.out_norm = BatchNorm(widths[-1])
        self.out_conv = SpectralConv(widths[-1], shape[0], eps=self.eps)

    def forward(self, noise: Tensor, c: Tensor) -> Tensor:
        first, *parts = noise.chunk(self.chunks, dim=1)  # each (B, chunk)
        h = self.linear(first).unflatten(1, (-1, self.bottom, self.bottom))  # (B, C, bottom, bottom)
        for i, block in enumerate(self.blocks):
            h = block(h, torch.cat([c, parts[i]], dim=1) if parts else c)  # (B, C, side, side)
        return self.out_conv(F.relu(self.out_norm(h, c))).tanh()  # (B, *shape)


class BigGANDiscriminator(DiscriminatorNetwork):
    """Agrees with the official BigGAN discriminator of IC-GAN, a projection discriminator.

    Args:
        channels: width; the maps have 1 to 16 times this number of channels.
        attention: sides of the maps that self-attention follows; for images up to 32 pixels, half the image's side
            selects all maps.
        eps: of the spectral normalisation.
    """

    def __init__(
        self, channels: Width = 96, attention: list[PositiveInt] | None = None, eps: PositiveFloat = EPS
    ) -> None:
        super().__init__()
        self.channels, self.attention, self.eps = channels, attention or [], eps

    def condition_width(self, shape: tuple[int, ...]) -> int:
        return self.channels * DISCRIMINATOR[doublings_of(shape)[1]][-1]

    def build(self, shape: tuple[int, ...], condition_dim: int) -> None:
        _, count = doublings_of(shape)
        widths = [shape[0], *(self.channels * factor for factor in DISCRIMINATOR[count])]
        fits = condition_dim in (0, widths[-1])
        require(fits, f"BigGAN projects onto its features: the discriminator's conditioner.dim must be {widths[-1]}")
        self.conditional = condition_dim > 0
        halves, sides = halvings(shape[1], count)
        attends = attended(sides, self.attention)
        self.blocks = nn.ModuleList(
            DiscriminatorBlock(before, after, i == 0, halves[i], attends[i], self.eps)
            for i, (before, after) in enumerate(pairwise(widths))
        )
        self.linear = SpectralLinear(widths[-1], 1, eps=self.eps)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)  # (B, C, side, side)
        h = F.relu(x).sum((2, 3))  # (B, C)
        logits = self.linear(h)[:, 0]  # (B,)
        return logits + (c * h).sum(1) if self.conditional else logits


def halvings(side: int, count: int) -> tuple[list[bool], list[int]]:
    """Return for each block of a discriminator whether it halves, and the side that selects it for attention.

    Args:
        side: of the images.
        count: number of doublings of the generator.
    """
    small, blocks = count <= SMALL, len(DISCRIMINATOR[count])
    halves = [i < (min(count, 2) if small else count) for i in range(blocks)]
    # in the official table every block of a small discriminator has the first block's side: all attend or none
    return halves, [side >> (1 if small else sum(halves[: i + 1])) for i in range(blocks)]


def attended(sides: list[int], wanted: list[int]) -> list[bool]:
    """Return for each block, by the side of its output, whether attention follows it.

    Raises:
        UserError: no block has such a side.
    """
    absent = sorted(set(wanted) - set(sides))
    require(not absent, f"attention: no map has side {absent}, the sides are {sorted(set(sides))}")
    return [side in wanted for side in sides]
