"""Layers and embeddings that several networks share."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def sinusoidal_embedding(t: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Timesteps (B,) -> (B, dim) float32, [cos | sin] with geometric frequencies (DDPM; dim is even)."""
    half = dim // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def mlp_silu(dim_in: int, dim: int) -> nn.Sequential:
    """Linear-SiLU-Linear, the MLP of every timestep embedding here."""
    return nn.Sequential(nn.Linear(dim_in, dim), nn.SiLU(), nn.Linear(dim, dim))


def run_block(block: nn.Module, *inputs: Tensor | None, checkpointing: bool, random: bool = False) -> Tensor:
    """Return ``block(*inputs)``, with activation checkpointing if requested.

    Args:
        block: its result depends only on its inputs, its weights and torch's generator; a pass changes no state.
        checkpointing: store the inputs only and compute the block again in the backward pass.
        random: whether the block uses random numbers; the second pass then repeats them.
    """
    if not (checkpointing and torch.is_grad_enabled()):
        return block(*inputs)
    return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=random)  # type: ignore[return-value]


class SelfAttention(nn.Module):
    """Multi-head self-attention over (B, N, D), by torch's fused kernels.

    Args:
        dropout: of the result, and of the attention weights unless ``weights_dropout`` is given.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        weights_dropout: float | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.weights_dropout = dropout if weights_dropout is None else weights_dropout
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, heads, N, D / heads)
        dropout, weights_dropout = (self.dropout, self.weights_dropout) if self.training else (0.0, 0.0)
        x = F.scaled_dot_product_attention(*qkv.unbind(0), dropout_p=weights_dropout)  # (B, heads, N, D / heads)
        x = self.proj(x.transpose(1, 2).flatten(2))  # (B, N, D)
        return F.dropout(x, dropout) if dropout else x


def sincos_table(height: int, width: int, dim: int) -> Tensor:
    """Return (height * width, dim) float32: the first half encodes columns, the second rows, each [sin | cos].

    As in MAE and DiT; frequencies are float64 as in DiT.
    """
    omega = 10_000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    angles = [axis.flatten().double()[:, None] * omega for axis in (columns, rows)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1).float()
