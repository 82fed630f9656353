"""Blocks of StyleGAN2 (Karras et al. 2020) in plain PyTorch: filtered resampling, equalised and modulated layers.

Equalised layers have weights of unit variance and scale them in each pass, so that one learning rate suits all layers;
an ``lr_multiplier`` below 1 slows a layer down. Every nonlinearity is ``scaled_leaky_relu``, which preserves variance.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rcg_lightning.networks.embedding_layers import Maps

CLAMP = 256.0  # largest activation, for half precision


def low_pass(x: Tensor, gain: float = 1.0) -> Tensor:
    """Return the filter [1, 3, 3, 1] x [1, 3, 3, 1] with sum ``gain`` for each channel of x: (C, 1, 4, 4)."""
    # computed on the device: copying a list from the host would make the host wait
    taps = (4 - 2 * (torch.arange(4, device=x.device, dtype=x.dtype) - 1.5).abs()) / 8  # 1/8, 3/8, 3/8, 1/8
    return (gain * taps[:, None] * taps).expand(x.shape[1], 1, 4, 4)


def blur(x: Tensor, padding: int, gain: float = 1.0, stride: int = 1) -> Tensor:
    """Filter x (B, C, H, W) with zero padding; H becomes H + 2 padding - 3, over ``stride``."""
    return F.conv2d(x, low_pass(x, gain), stride=stride, padding=padding, groups=x.shape[1])


def halved(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, H / 2, W / 2), filtered."""
    return blur(x, padding=1, stride=2)


def doubled(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, 2 H, 2 W), filtered."""
    return F.conv_transpose2d(x, low_pass(x, gain=4.0), stride=2, padding=1, groups=x.shape[1])


def scaled_leaky_relu(x: Tensor, gain: float = 1.0, clamp: float | None = None) -> Tensor:
    """Leaky ReLU (slope 0.2) times √2, which preserves unit variance, times ``gain``; clamped to ± ``clamp`` · gain."""
    x = F.leaky_relu(x, 0.2) * (math.sqrt(2) * gain)
    return x if clamp is None else x.clamp(-clamp * gain, clamp * gain)


def normalise_second_moment(x: Tensor) -> Tensor:
    """Scale each example of x (B, D) to a second moment of 1."""
    x = x.float()
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


class EqualisedLinear(nn.Linear):
    """Linear layer with equalised weights.

    Args:
        dim_in: dimensions of the input.
        dim: dimensions of the output.
        lr_multiplier: learning rate over that of other layers.
        bias: initial value of every bias.
    """

    def __init__(self, dim_in: int, dim: int, lr_multiplier: float = 1.0, bias: float = 0.0) -> None:
        super().__init__(dim_in, dim)
        nn.init.normal_(self.weight, std=1 / lr_multiplier)
        nn.init.constant_(self.bias, bias)
        self.lr_multiplier, self.gain = lr_multiplier, lr_multiplier / math.sqrt(dim_in)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.gain, self.bias * self.lr_multiplier)


class EqualisedTable(nn.Embedding):
    """Embedding table with equalised weights: the equalised linear layer of a one-hot vector."""

    def __init__(self, count: int, dim: int) -> None:
        super().__init__(count, dim)
        nn.init.normal_(self.weight)
        self.gain = 1 / math.sqrt(count)

    def forward(self, row: Tensor) -> Tensor:
        return super().forward(row) * self.gain


class EqualisedMaps(Maps):
    """Embedding layers of a condition for StyleGAN2."""

    def linear(self, dim_in: int, dim: int) -> nn.Linear:
        return EqualisedLinear(dim_in, dim)

    def table(self, count: int, dim: int) -> nn.Embedding:
        return EqualisedTable(count, dim)


class EqualisedConv(nn.Module):
    """Convolution with equalised weights.

    Args:
        channels: of the input.
        out_channels: of the output.
        size: side of the kernel.
        halves: whether the map is halved.
        linear: whether there is neither bias nor nonlinearity.
        clamp: largest activation.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        size: int = 3,
        halves: bool = False,
        linear: bool = False,
        clamp: float | None = CLAMP,
    ) -> None:
        super().__init__()
        self.size, self.halves, self.clamp = size, halves, clamp
        self.weight = nn.Parameter(torch.randn(out_channels, channels, size, size))
        self.bias = None if linear else nn.Parameter(torch.zeros(out_channels))
        self.scale = 1 / math.sqrt(channels * size**2)

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        """(B, C, H, W) -> (B, out, H, W), or half of H and W; times ``gain``."""
        weight = self.weight * self.scale
        if not self.halves:
            x = F.conv2d(x, weight, padding=self.size // 2)
        elif self.size == 1:
            x = F.conv2d(halved(x), weight)
        else:
            x = F.conv2d(blur(x, padding=self.size // 2 + 1), weight, stride=2)
        return x * gain if self.bias is None else scaled_leaky_relu(x + self.bias[:, None, None], gain, self.clamp)


class ModulatedConv(nn.Module):
    """Convolution whose input channels are scaled by a style.

    Args:
        style_dim: width of w, from which a linear layer makes the scales.
        channels: of the input.
        out_channels: of the output.
        size: side of the kernel.
        doubles: whether the map is doubled.
        demodulates: whether the output is scaled back to unit variance; otherwise the weights are equalised.
    """

    def __init__(
        self,
        style_dim: int,
        channels: int,
        out_channels: int,
        size: int = 3,
        doubles: bool = False,
        demodulates: bool = True,
    ) -> None:
        super().__init__()
        self.size, self.doubles, self.demodulates = size, doubles, demodulates
        self.affine = EqualisedLinear(style_dim, channels, bias=1.0)
        self.weight = nn.Parameter(torch.randn(out_channels, channels, size, size))
        self.scale = 1.0 if demodulates else 1 / math.sqrt(channels * size**2)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """x (B, C, H, W), w (B, style_dim) -> (B, out, H, W), or twice H and W."""
        style = self.affine(w) * self.scale  # (B, C)
        x = x * style[:, :, None, None]
        if self.doubles:
            x = blur(F.conv_transpose2d(x, self.weight.transpose(0, 1), stride=2), padding=1, gain=4.0)
        else:
            x = F.conv2d(x, self.weight, padding=self.size // 2)
        if not self.demodulates:
            return x
        power = style.square() @ self.weight.square().sum((2, 3)).T  # (B, out)
        return x * (power + 1e-8).rsqrt()[:, :, None, None]


class StyledConv(nn.Module):
    """Modulated convolution, noise, bias, nonlinearity.

    The noise has one value for each position. In training it is random for every image; in evaluation it is a stored
    constant, so that the network's inputs determine the image.
    """

    constant: Tensor

    def __init__(
        self, style_dim: int, channels: int, out_channels: int, side: int, doubles: bool, clamp: float | None
    ) -> None:
        super().__init__()
        self.clamp = clamp
        self.conv = ModulatedConv(style_dim, channels, out_channels, doubles=doubles)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.strength = nn.Parameter(torch.zeros(()))
        self.register_buffer("constant", torch.randn(side, side))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """x (B, C, H, W), w (B, style_dim) -> (B, out, side, side)."""
        x = self.conv(x, w)
        noise = torch.randn(len(x), 1, *x.shape[2:], device=x.device) if self.training else self.constant
        return scaled_leaky_relu(x + noise * self.strength + self.bias[:, None, None], clamp=self.clamp)


class ToImage(nn.Module):
    """Modulated 1 x 1 convolution and bias, whose output a block adds to the image."""

    def __init__(self, style_dim: int, channels: int, out_channels: int, clamp: float | None) -> None:
        super().__init__()
        self.clamp = clamp
        self.conv = ModulatedConv(style_dim, channels, out_channels, size=1, demodulates=False)
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """x (B, C, H, W), w (B, style_dim) -> (B, out, H, W)."""
        x = self.conv(x, w) + self.bias[:, None, None]
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)


class MappingNetwork(nn.Module):
    """Noise and condition, each normalised to second moment 1, through equally wide layers to w.

    Args:
        noise_dim: dimensions of the noise; 0 for none.
        condition_dim: width of the condition embedding, normalised as a whole; 0 for none.
        width: of every layer.
        layers: number of layers.
        lr_multiplier: learning rate over that of other layers.
    """

    def __init__(self, noise_dim: int, condition_dim: int, width: int, layers: int, lr_multiplier: float) -> None:
        super().__init__()
        dims = [noise_dim + condition_dim, *[width] * (layers - 1)]
        self.layers = nn.ModuleList(EqualisedLinear(dim, width, lr_multiplier) for dim in dims)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Noise (B, noise_dim) and condition (B, condition_dim), either may be absent or empty -> w (B, width)."""
        x = torch.cat([normalise_second_moment(part) for part in inputs if part.shape[1]], dim=1)
        for layer in self.layers:
            x = scaled_leaky_relu(layer(x))
        return x


def minibatch_stddev(x: Tensor, group: int) -> Tensor:
    """Append a channel to x (B, C, H, W): the standard deviation over the images of a group, averaged over features.

    A group has ``group`` images, or the next smaller number that divides the batch.
    """
    size = next(n for n in range(min(group, len(x)), 0, -1) if len(x) % n == 0)
    groups = x.float().unflatten(0, (size, -1))  # (size, groups, C, H, W)
    stddev = (groups.var(0, correction=0) + 1e-8).sqrt().mean((1, 2, 3))  # (groups,)
    channel = stddev.repeat(size)[:, None, None, None].expand(-1, 1, *x.shape[2:])
    return torch.cat([x, channel.to(x.dtype)], dim=1)  # (B, C + 1, H, W)
