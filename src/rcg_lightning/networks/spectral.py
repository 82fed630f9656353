"""Spectral normalisation as BigGAN has it: weights are divided by their largest singular value.

The value is estimated by one step of power iteration in each forward pass, from the vector that the last pass in
training left behind. So in training a forward pass changes buffers even without gradient, and the number of passes
matters; in evaluation nothing changes. The estimate is differentiable in the weight, its vectors are not.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rcg_lightning.networks.embedding_layers import Maps

EPS = 1e-6  # of the official training code


class Spectral(nn.Module):
    """What makes a layer's ``weight`` spectrally normalised, for layers to inherit next to torch's own.

    Buffers: ``u`` (1, out) the left singular vector, ``sigma`` (1,) the value that was found last.
    """

    weight: nn.Parameter
    eps: float
    u: Tensor
    sigma: Tensor

    def start(self, eps: float) -> None:
        """Add the buffers; ``eps`` keeps the vectors' norms from zero."""
        self.eps = eps
        self.register_buffer("u", torch.randn(1, len(self.weight)))
        self.register_buffer("sigma", torch.ones(1))

    def normalised(self) -> Tensor:
        """Return weight / σ, (out, …), float32 under autocast too."""
        device = self.weight.device.type
        known = torch.amp.is_autocast_available(device)  # not for tensors without memory
        with torch.autocast(device, enabled=False) if known else nullcontext():
            matrix = self.weight.flatten(1)  # (out, in)
            with torch.no_grad():
                v = F.normalize(self.u @ matrix, eps=self.eps)  # (1, in)
                u = F.normalize(v @ matrix.T, eps=self.eps)  # (1, out)
            sigma = (v @ matrix.T @ u.T)[0]  # (1,)
            if self.training:
                with torch.no_grad():
                    self.u.copy_(u)
                    self.sigma.copy_(sigma)
            return self.weight / sigma


class SpectralLinear(Spectral, nn.Linear):
    """A linear map with a normalised weight, orthogonal at the start."""

    def __init__(self, dim_in: int, dim: int, bias: bool = True, eps: float = EPS) -> None:
        super().__init__(dim_in, dim, bias)
        nn.init.orthogonal_(self.weight)
        self.start(eps)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.normalised(), self.bias)


class SpectralConv(Spectral, nn.Conv2d):
    """A convolution that keeps height and width, with a normalised weight, orthogonal at the start."""

    def __init__(self, channels: int, out_channels: int, size: int = 3, bias: bool = True, eps: float = EPS) -> None:
        super().__init__(channels, out_channels, size, padding=size // 2, bias=bias)
        nn.init.orthogonal_(self.weight)
        self.start(eps)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.normalised(), self.bias)


class SpectralTable(Spectral, nn.Embedding):
    """A table with a normalised weight, orthogonal at the start; its rows count as outputs."""

    def __init__(self, count: int, dim: int, eps: float = EPS) -> None:
        super().__init__(count, dim)
        nn.init.orthogonal_(self.weight)
        self.start(eps)

    def forward(self, row: Tensor) -> Tensor:
        return F.embedding(row, self.normalised())


class SpectralMaps(Maps):
    """Maps of a condition for BigGAN, orthogonal at the start.

    Args:
        tables: whether tables are normalised too, as in the discriminator; the official generator leaves them out.
        eps: keeps norms from zero.
    """

    def __init__(self, tables: bool = False, eps: float = EPS) -> None:
        self.tables, self.eps = tables, eps

    def linear(self, dim_in: int, dim: int) -> nn.Linear:
        return SpectralLinear(dim_in, dim, eps=self.eps)

    def table(self, count: int, dim: int) -> nn.Embedding:
        if self.tables:
            return SpectralTable(count, dim, self.eps)
        table = nn.Embedding(count, dim)
        nn.init.orthogonal_(table.weight)
        return table
