"""StyleGAN2 (Karras et al. 2020) in plain PyTorch, the second backbone of IC-GAN (Casanova et al. 2021).

The skip generator and the residual discriminator, with the settings of StyleGAN2-ADA. A ``Conditioner`` with
``EqualisedMaps`` embeds the condition; the embeddings of two parts are concatenated and normalised as one.
"""

import itertools
import math

import torch
from torch import Tensor, nn

from rcg_lightning.arguments import Count, Depth, NonNegativeFloat, PositiveFloat, PositiveInt, UnitInterval, Width
from rcg_lightning.networks.adversarial import DiscriminatorNetwork, GeneratorNetwork, NormalNoise, doublings
from rcg_lightning.networks.stylegan2_blocks import (
    CLAMP,
    EqualisedConv,
    EqualisedLinear,
    MappingNetwork,
    StyledConv,
    ToImage,
    doubled,
    minibatch_stddev,
    scaled_leaky_relu,
)


def widths_of(shape: tuple[int, ...], channel_base: int, channel_max: int) -> dict[int, int]:
    """Return the channels of each map by its side, the smallest first."""
    bottom, count = doublings(shape, "StyleGAN2")
    sides = [bottom * 2**i for i in range(count + 1)]
    return {side: max(1, min(channel_base // side, channel_max)) for side in sides}


class SynthesisBlock(nn.Module):
    """A doubling convolution and a second convolution; the first block starts from a learned constant instead.

    Args:
        style_dim: width of a style.
        channels: of the input; 0 in the first block.
        out_channels: of the output.
        side: of the output.
        colours: channels of the image.
        clamp: largest activation.
    """

    def __init__(
        self, style_dim: int, channels: int, out_channels: int, side: int, colours: int, clamp: float | None
    ) -> None:
        super().__init__()
        if channels:
            self.conv0 = StyledConv(style_dim, channels, out_channels, side, True, clamp)
        else:
            self.start = nn.Parameter(torch.randn(out_channels, side, side))
        self.first = not channels
        self.conv1 = StyledConv(style_dim, out_channels, out_channels, side, False, clamp)
        self.image = ToImage(style_dim, out_channels, colours, clamp)

    def forward(self, x: Tensor | None, image: Tensor | None, w: Tensor) -> tuple[Tensor, Tensor]:
        """Features and image of the previous block, styles w (B, 2 or 3, style_dim) -> features and image."""
        styles = iter(w.unbind(1))
        h: Tensor = self.start.expand(len(w), -1, -1, -1) if x is None else self.conv0(x, next(styles))
        h = self.conv1(h, next(styles))  # (B, C, side, side)
        residual = self.image(h, next(styles))  # (B, colours, side, side)
        return h, residual if image is None else doubled(image) + residual


class StyleGAN2Generator(GeneratorNetwork):
    """Agrees with the generator of IC-GAN on StyleGAN2-ADA.

    In evaluation the noise of the layers is a stored constant, so that the seed determines the image; in the official
    code it is random there too.

    Args:
        noise_dim: dimensions of the noise.
        width: of a style and of the mapping network's layers.
        layers: number of layers of the mapping network.
        channel_base: channels of a map times its side, as long as they do not exceed ``channel_max``.
        channel_max: largest number of channels.
        mixing: probability in training that an image's later layers get the style of another noise.
        truncation: in evaluation, a style's distance to the mean style is multiplied by this; 1 is no truncation.
        momentum: of the mean style.
        lr_multiplier: learning rate of the mapping network over that of other layers.
        clamp: largest activation; None for no bound.
    """

    noise_distribution = NormalNoise()

    def __init__(
        self,
        noise_dim: Width = 512,
        width: Width = 512,
        layers: Depth = 8,
        channel_base: Count = 16384,
        channel_max: Width = 512,
        mixing: UnitInterval = 0.9,
        truncation: NonNegativeFloat = 1.0,
        momentum: UnitInterval = 0.995,
        lr_multiplier: PositiveFloat = 0.01,
        clamp: PositiveFloat | None = CLAMP,
    ) -> None:
        super().__init__()
        self.noise_dim, self.width, self.layers = noise_dim, width, layers
        self.channel_base, self.channel_max = channel_base, channel_max
        self.mixing, self.truncation, self.momentum = mixing, truncation, momentum
        self.lr_multiplier, self.clamp = lr_multiplier, clamp

    mean: Tensor

    def condition_width(self, shape: tuple[int, ...]) -> int:
        return self.width

    def build(self, shape: tuple[int, ...], condition_dim: int) -> None:
        widths = widths_of(shape, self.channel_base, self.channel_max)
        before = [0, *widths.values()]
        self.mapping = MappingNetwork(self.noise_dim, condition_dim, self.width, self.layers, self.lr_multiplier)
        self.register_buffer("mean", torch.zeros(self.width))
        self.blocks = nn.ModuleList(
            SynthesisBlock(self.width, channels, out_channels, side, shape[0], self.clamp)
            for channels, (side, out_channels) in zip(before, widths.items())
        )
        self.style_count = 2 * len(self.blocks)

    def forward(self, noise: Tensor, c: Tensor) -> Tensor:
        return self.synthesise(self.styles(noise, c))

    def styles(self, noise: Tensor, c: Tensor) -> Tensor:
        """noise (B, noise_dim), c (B, condition_dim) -> a style for each layer (B, style_count, width).

        In training the mean style is updated and styles are mixed; in evaluation styles are truncated.
        """
        w = self.mapping(noise, c).float()  # (B, width)
        if not self.training:
            w = w if self.truncation == 1 else self.mean.lerp(w, self.truncation)
            return w[:, None].expand(-1, self.style_count, -1)
        with torch.no_grad():
            self.mean.lerp_(w.mean(0), 1 - self.momentum)
        w = w[:, None].expand(-1, self.style_count, -1)  # (B, style_count, width)
        return self._mixed(w, noise, c) if self.mixing > 0 else w

    def _mixed(self, w: Tensor, noise: Tensor, c: Tensor) -> Tensor:
        """Replace the styles from a random layer on, the same for the whole batch, by the styles of another noise."""
        other = self.mapping(torch.randn_like(noise), c).float()[:, None]  # (B, 1, width)
        first = torch.randint(1, self.style_count, (), device=w.device)
        is_mixed = torch.rand((), device=w.device) < self.mixing
        is_later = torch.arange(self.style_count, device=w.device) >= first  # (style_count,)
        return torch.where((is_later & is_mixed)[None, :, None], other, w)

    def synthesise(self, w: Tensor) -> Tensor:
        """Styles (B, style_count, width) -> images (B, *shape), about [-1, 1]. Path length regularises this part."""
        x = image = None
        first = 0
        for block in self.blocks:
            count = 2 if block.first else 3  # a block's last style is the next block's first
            x, image = block(x, image, w[:, first : first + count])
            first += count - 1
        assert image is not None
        return image


class DiscriminatorBlock(nn.Module):
    """Two convolutions, the second halves the map; residual."""

    def __init__(self, channels: int, out_channels: int, clamp: float | None) -> None:
        super().__init__()
        self.conv0 = EqualisedConv(channels, channels, clamp=clamp)
        self.conv1 = EqualisedConv(channels, out_channels, halves=True, clamp=clamp)
        self.skip = EqualisedConv(channels, out_channels, 1, halves=True, linear=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out, H / 2, W / 2)."""
        return self.skip(x, math.sqrt(0.5)) + self.conv1(self.conv0(x), math.sqrt(0.5))


class StyleGAN2Discriminator(DiscriminatorNetwork):
    """Agrees with the discriminator of IC-GAN on StyleGAN2-ADA: a projection discriminator with a mapping network.

    Args:
        layers: number of layers of the mapping network.
        channel_base: channels of a map times its side, as long as they do not exceed ``channel_max``.
        channel_max: largest number of channels.
        group: images in a group of ``minibatch_stddev``.
        lr_multiplier: learning rate of the mapping network over that of other layers.
        clamp: largest activation; None for no bound.
    """

    together = False

    def __init__(
        self,
        layers: Depth = 8,
        channel_base: Count = 16384,
        channel_max: Width = 512,
        group: PositiveInt = 4,
        lr_multiplier: PositiveFloat = 0.01,
        clamp: PositiveFloat | None = CLAMP,
    ) -> None:
        super().__init__()
        self.layers, self.channel_base, self.channel_max, self.group = layers, channel_base, channel_max, group
        self.lr_multiplier, self.clamp = lr_multiplier, clamp

    def condition_width(self, shape: tuple[int, ...]) -> int:
        return next(iter(widths_of(shape, self.channel_base, self.channel_max).values()))

    def build(self, shape: tuple[int, ...], condition_dim: int) -> None:
        widths = widths_of(shape, self.channel_base, self.channel_max)
        bottom, width = next(iter(widths.items()))
        channels = list(reversed(widths.values()))
        self.image = EqualisedConv(shape[0], channels[0], 1, clamp=self.clamp)
        self.blocks = nn.ModuleList(
            DiscriminatorBlock(before, after, self.clamp) for before, after in itertools.pairwise(channels)
        )
        self.mapping = (
            MappingNetwork(0, condition_dim, width, self.layers, self.lr_multiplier) if condition_dim else None
        )
        self.conv = EqualisedConv(width + 1, width, clamp=self.clamp)
        self.linear = EqualisedLinear(width * bottom**2, width)
        self.out_linear = EqualisedLinear(width, width if condition_dim else 1)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        x = self.image(x)  # (B, C, H, H)
        for block in self.blocks:
            x = block(x)  # (B, C, side, side)
        x = self.conv(minibatch_stddev(x, self.group))  # (B, width, bottom, bottom)
        h = self.out_linear(scaled_leaky_relu(self.linear(x.flatten(1))))  # (B, width or 1)
        if self.mapping is None:
            return h[:, 0]
        direction = self.mapping(c)  # (B, width)
        return (h * direction).sum(1) / math.sqrt(direction.shape[1])  # (B,)
