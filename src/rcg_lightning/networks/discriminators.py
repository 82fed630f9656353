"""The patch discriminator that tokenizers are trained with."""

import math
from itertools import pairwise

from torch import Tensor, nn

from rcg_lightning.arguments import Depth, Width
from rcg_lightning.networks.adversarial import DiscriminatorNetwork
from rcg_lightning.types import require


class PatchDiscriminator(DiscriminatorNetwork):
    """A real-or-fake logit for every patch of an image (Isola et al. 2017, as in VQGAN).

    Uses GroupNorm instead of BatchNorm, so that processes need not share statistics.

    Args:
        width: channels after the first convolution; each halving doubles them, up to eight times ``width``.
        layers: number of halvings; with three a patch is 70 pixels wide, with one 16.
    """

    def __init__(self, width: Width = 64, layers: Depth = 3) -> None:
        super().__init__()
        self.width, self.layers = width, layers

    def condition_width(self, shape: tuple[int, ...]) -> int:
        return 0

    def build(self, shape: tuple[int, ...], condition_dim: int) -> None:
        require(condition_dim == 0, "PatchDiscriminator takes no condition: choose another discriminator")
        channels, side = shape[0], min(shape[1:])
        largest = max(int(math.log2(max(side, 3) / 3)), 0)
        message = f"images of {side} pixels can be halved {largest} times before PatchDiscriminator's last layers"
        require(self.layers <= largest, f"{message}: set its layers to {largest} or less, not {self.layers}")
        widths = [self.width * min(2**i, 8) for i in range(self.layers + 1)]
        body: list[nn.Module] = [nn.Conv2d(channels, widths[0], 4, 2, padding=1), nn.LeakyReLU(0.2)]
        for i, (before, after) in enumerate(pairwise(widths), 1):
            stride = 2 if i < self.layers else 1
            body += [nn.Conv2d(before, after, 4, stride, padding=1, bias=False)]
            body += [nn.GroupNorm(math.gcd(32, after), after), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*body, nn.Conv2d(widths[-1], 1, 4, padding=1))
        for module in self.net:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, C, H, W), c (B, 0) -> logits (B, 1, h, w), one for each patch."""
        return self.net(x)
