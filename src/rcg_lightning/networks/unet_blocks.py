"""Blocks of U-Nets.

Each maps x (B, C, H, W), given a timestep embedding t_emb (B, E) and a context c (B, D), which it may ignore.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from rcg_lightning.networks.layers import SelfAttention

Resize = Callable[[Tensor], Tensor]


def halve(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, H / 2, W / 2), the mean of 2 x 2."""
    return F.avg_pool2d(x, 2)


def double(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, 2 H, 2 W), each value four times."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def zeroed(layer: nn.Module) -> nn.Module:
    """Set all parameters of ``layer`` to zero and return it, so that the residual block it ends starts as identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class Blocks(nn.Sequential):
    """A sequence of blocks."""

    def forward(self, x: Tensor, t_emb: Tensor, c: Tensor) -> Tensor:  # type: ignore[override]
        for block in self:
            x = block(x, t_emb, c)
        return x


class Convolution(nn.Conv2d):
    """3 x 3 convolution; with stride 2 it halves the map."""

    def __init__(self, channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(channels, out_channels, 3, stride, padding=1)

    def forward(self, x: Tensor, t_emb: Tensor, c: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)


class DoublingConvolution(Convolution):
    """Double the map, then a 3 x 3 convolution."""

    def forward(self, x: Tensor, t_emb: Tensor, c: Tensor) -> Tensor:
        return super().forward(double(x), t_emb, c)


class ResidualBlock(nn.Module):
    """GroupNorm-SiLU-convolution twice, with the timestep in between; residual.

    Args:
        channels: of the input.
        out_channels: of the output.
        time_dim: width of the timestep embedding, to which SiLU has been applied.
        groups: groups of the norms.
        dropout: before the second convolution.
        modulated: whether the timestep scales and shifts the second norm's output (ADM) or is added before it (LDM).
        resize: applied to the input of the first convolution and to the shortcut (ADM's halving and doubling).
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        time_dim: int,
        groups: int,
        dropout: float,
        modulated: bool,
        resize: Resize | None = None,
    ) -> None:
        super().__init__()
        self.modulated, self.resize = modulated, resize
        self.in_norm = nn.GroupNorm(groups, channels)
        self.in_conv = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.time_proj = nn.Linear(time_dim, (1 + modulated) * out_channels)
        self.out_norm = nn.GroupNorm(groups, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.out_conv = zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Conv2d(channels, out_channels, 1) if channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, t_emb: Tensor, c: Tensor) -> Tensor:
        h = F.silu(self.in_norm(x))  # (B, C, H, W)
        if self.resize is not None:
            h, x = self.resize(h), self.resize(x)
        h = self.in_conv(h)  # (B, O, H', W')
        shift_scale = self.time_proj(t_emb)[:, :, None, None]
        if self.modulated:
            scale, shift = shift_scale.chunk(2, dim=1)  # (B, O, 1, 1) each
            h = self.out_norm(h) * (1 + scale) + shift
        else:
            h = self.out_norm(h + shift_scale)
        return self.skip(x) + self.out_conv(self.dropout(F.silu(h)))  # (B, O, H', W')


class AttentionBlock(nn.Module):
    """Self-attention over all positions; residual (ADM; also autoencoders, with another eps)."""

    def __init__(self, channels: int, heads: int, groups: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps)
        self.attn = SelfAttention(channels, heads)
        zeroed(self.attn.proj)

    def forward(self, x: Tensor, t_emb: Tensor | None = None, c: Tensor | None = None) -> Tensor:
        h = self.attn(self.norm(x).flatten(2).transpose(1, 2))  # (B, H W, C)
        return x + h.transpose(1, 2).unflatten(2, x.shape[2:])  # (B, C, H, W)


class GatedMLP(nn.Module):
    """GEGLU (Shazeer 2020): one half of a linear layer times the exact GELU of the other, then a linear layer."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.inner = nn.Linear(dim, 8 * dim)
        self.outer = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.inner(x).chunk(2, dim=-1)  # (B, N, 4 D) each
        return self.outer(value * F.gelu(gate))  # (B, N, D)


class TransformerBlock(nn.Module):
    """Self-attention, attention to the context, gated MLP; each residual and after a LayerNorm.

    The context is a single token, so the softmax over it is 1 for any query: attention gives the token's value at every
    position. The official to_q, to_k and norm2 have no effect there and a gradient of exactly zero, so they do not
    exist here. Without a condition there is no context.
    """

    def __init__(self, dim: int, heads: int, context_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = SelfAttention(dim, heads, qkv_bias=False)
        self.context_value = nn.Linear(context_dim, dim, bias=False) if context_dim else None
        self.context_out = nn.Linear(dim, dim) if context_dim else None
        self.norm3 = nn.LayerNorm(dim)
        self.mlp = GatedMLP(dim)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))  # (B, N, D)
        if self.context_value is not None and self.context_out is not None:
            x = x + self.context_out(self.context_value(c))[:, None]
        return x + self.mlp(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over all positions, between two 1 x 1 convolutions; residual (LDM)."""

    def __init__(self, channels: int, heads: int, groups: int, context_dim: int, depth: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)  # eps is 1e-5 in the residual blocks, as in official LDM
        self.in_conv = nn.Conv2d(channels, channels, 1)
        self.blocks = nn.ModuleList(TransformerBlock(channels, heads, context_dim) for _ in range(depth))
        self.out_conv = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, t_emb: Tensor, c: Tensor) -> Tensor:
        h = self.in_conv(self.norm(x)).flatten(2).transpose(1, 2)  # (B, H W, C)
        for block in self.blocks:
            h = block(h, c)
        return x + self.out_conv(h.transpose(1, 2).unflatten(2, x.shape[2:]))  # (B, C, H, W)
