"""Spectral normalisation as in BigGAN: each weight is divided by its largest singular value.

Each forward pass estimates that value by one step of power iteration, which starts from the vector stored by the last
training pass. So a training pass changes buffers even without a gradient, and the number of passes matters. In
evaluation nothing changes. The estimate is differentiable in the weight; the singular vectors are constants.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rcg_lightning.arguments import PositiveFloat
from rcg_lightning.networks.embedding_layers import Maps

EPS = 1e-6  # as in the official training code


class Spectral(nn.Module):
    """Mixin that normalises the ``weight`` of one of torch's layers.

    Buffers: ``u`` (1, out), the left singular vector, and ``sigma`` (1,), the latest singular value.
    """

    weight: nn.Parameter
    eps: float
    u: Tensor
    sigma: Tensor

    def start(self, eps: float) -> None:
        """Add the buffers; ``eps`` keeps the vectors' norms above zero."""
        self.eps = eps
        self.register_buffer("u", torch.randn(1, len(self.weight)))
        self.register_buffer("sigma", torch.ones(1))

    def normalised(self) -> Tensor:
        """Return weight / σ, (out, …), float32 under autocast too."""
        device = self.weight.device.type
        has_autocast = torch.amp.is_autocast_available(device)  # the meta device has none
        with torch.autocast(device, enabled=False) if has_autocast else nullcontext():
            # columns in the order of memory, which changes no singular value: channels last needs no copy either
            weight = self.weight if self.weight.is_contiguous() else self.weight.movedim(1, -1)
            matrix = weight.flatten(1)  # (out, in)
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
    """Linear layer with a normalised weight and orthogonal initialisation."""

    def __init__(self, dim_in: int, dim: int, bias: bool = True, eps: float = EPS) -> None:
        super().__init__(dim_in, dim, bias)
        nn.init.orthogonal_(self.weight)
        self.start(eps)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.normalised(), self.bias)


class SpectralConv(Spectral, nn.Conv2d):
    """Convolution that preserves height and width, with a normalised weight and orthogonal initialisation."""

    def __init__(self, channels: int, out_channels: int, size: int = 3, bias: bool = True, eps: float = EPS) -> None:
        super().__init__(channels, out_channels, size, padding=size // 2, bias=bias)
        nn.init.orthogonal_(self.weight)
        self.start(eps)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.normalised(), self.bias)


class SpectralTable(Spectral, nn.Embedding):
    """Embedding table with a normalised weight and orthogonal initialisation. Its rows are the weight's outputs."""

    def __init__(self, count: int, dim: int, eps: float = EPS) -> None:
        super().__init__(count, dim)
        nn.init.orthogonal_(self.weight)
        self.start(eps)

    def forward(self, row: Tensor) -> Tensor:
        return F.embedding(row, self.normalised())


class SpectralMaps(Maps):
    """Embedding layers of a condition for BigGAN, with orthogonal initialisation.

    Args:
        tables: whether tables are normalised too, as in the official discriminator but not in its generator.
        eps: keeps norms above zero.
    """

    def __init__(self, tables: bool = False, eps: PositiveFloat = EPS) -> None:
        self.tables, self.eps = tables, eps

    def linear(self, dim_in: int, dim: int) -> nn.Linear:
        return SpectralLinear(dim_in, dim, eps=self.eps)

    def table(self, count: int, dim: int) -> nn.Embedding:
        if self.tables:
            return SpectralTable(count, dim, self.eps)
        table = nn.Embedding(count, dim)
        nn.init.orthogonal_(table.weight)
        return table
