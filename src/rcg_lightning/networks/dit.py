"""Diffusion transformer (Peebles & Xie 2023) on latents or pixels."""

from typing import Any

import torch
from torch import Tensor, nn

from rcg_lightning.arguments import Depth, MLPRatio, Width
from rcg_lightning.networks.layers import SelfAttention, mlp_silu, run_block, sincos_table, sinusoidal_embedding
from rcg_lightning.types import Backbone, require

# width, depth and heads as published; each with patches of 2, 4 or 8
SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}
PATCHES = (2, 4, 8)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Scale and shift: x (B, N, D), shift and scale (B, D) -> (B, N, D)."""
    return x * (1 + scale[:, None]) + shift[:, None]


class DiTBlock(nn.Module):
    """Transformer block whose norms are shifted, scaled and gated by the condition (adaLN-zero)."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.attn = SelfAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        hidden = int(dim * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))  # exact GELU, as in RCG
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).chunk(6, dim=1)  # each (B, D)
        x = x + gate1[:, None] * self.attn(modulate(self.norm1(x), shift1, scale1))  # (B, N, D)
        return x + gate2[:, None] * self.mlp(modulate(self.norm2(x), shift2, scale2))  # (B, N, D)


def published_size(name: str) -> tuple[int, int, int, int]:
    """Return patch, width, depth and heads of a published size, such as "XL/2"."""
    letters, _, patch = name.partition("/")
    known = letters in SIZES and patch in map(str, PATCHES)
    names = ", ".join(f"{letters}/{patch}" for letters in SIZES for patch in PATCHES)
    require(known, f"DiT has no size {name}: the published ones are {names}")
    return int(patch), *SIZES[letters]


class DiT(Backbone):
    """Agrees with RCG's DiT, which differs from the original in its exact GELU and its condition.

    Args:
        patch: side of a patch; it divides height and width.
        width: of the tokens.
        depth: number of blocks.
        heads: attention heads.
        mlp_ratio: hidden width of the MLPs over ``width``.
        checkpointing: recompute activations in the backward pass instead of storing them: less memory, a third slower.
        size: published size, such as "B/4": patch, width, depth and heads where they are not given.
    """

    def __init__(
        self,
        patch: Width | None = None,
        width: Width | None = None,
        depth: Depth | None = None,
        heads: Width | None = None,
        mlp_ratio: MLPRatio = 4.0,
        checkpointing: bool = False,
        size: str = "XL/2",
    ) -> None:
        super().__init__()
        patch, width, depth, heads = (
            published if given is None else given
            for given, published in zip((patch, width, depth, heads), published_size(size))
        )
        require(width % heads == 0, f"DiT: width {width} is not divisible by {heads} heads")
        self.patch, self.width, self.depth, self.heads, self.mlp_ratio = patch, width, depth, heads, mlp_ratio
        self.condition_width, self.checkpointing = width, checkpointing

    def build(self, shape: tuple[int, ...], condition_dim: int, out_factor: int = 1) -> None:
        require(len(shape) == 3, f"DiT models images or latents (C, H, W), not examples of shape {shape}")
        channels, height, width = shape
        divides = height % self.patch == 0 and width % self.patch == 0
        require(divides, f"DiT: patch {self.patch} does not divide {height}x{width}: change patch or image size")
        fits = condition_dim in (0, self.width)
        require(fits, f"DiT adds the condition to the timestep embedding: conditioner.dim must be {self.width} or null")
        self.grid = (height // self.patch, width // self.patch)
        self.out_channels = channels * out_factor
        self.embed = nn.Conv2d(channels, self.width, self.patch, stride=self.patch)
        self.register_buffer("positions", sincos_table(*self.grid, self.width)[None], persistent=False)
        self.time_embed = mlp_silu(256, self.width)
        self.blocks = nn.ModuleList(DiTBlock(self.width, self.heads, self.mlp_ratio) for _ in range(self.depth))
        self.out_norm = nn.LayerNorm(self.width, elementwise_affine=False, eps=1e-6)
        self.out_modulation = nn.Sequential(nn.SiLU(), nn.Linear(self.width, 2 * self.width))
        self.out_linear = nn.Linear(self.width, self.patch**2 * self.out_channels)
        self.initialise()

    def initialise(self) -> None:
        """The initialisation of the DiT paper."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.embed.weight.flatten(1))  # a patch embedding is a linear map
        nn.init.zeros_(self.embed.bias)  # type: ignore[arg-type]
        for layer in (self.time_embed[0], self.time_embed[2]):
            nn.init.normal_(layer.weight, std=0.02)  # type: ignore[arg-type]
        modulations = [self.out_modulation, *(block.modulation for block in self.blocks)]
        for layer in (self.out_linear, *(modulation[1] for modulation in modulations)):  # type: ignore[index]
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # every block starts as the identity, the network at zero

    def forward(self, x: Tensor, t: Tensor, c: Tensor, depth: int | None = None) -> Any:
        """x (B, C, H, W), t (B,), c (B, D) -> output like x; with ``depth`` also the tokens after that many blocks."""
        h = self.embed(x).flatten(2).transpose(1, 2) + torch.as_tensor(self.positions)  # (B, N, D)
        t_emb = self.time_embed(sinusoidal_embedding(t, 256))  # (B, D)
        c = t_emb + c if c.shape[1] else t_emb  # (B, D)
        tokens = None
        for number, block in enumerate(self.blocks, 1):
            h = run_block(block, h, c, checkpointing=self.checkpointing)  # (B, N, D)
            tokens = h if number == depth else tokens
        shift, scale = self.out_modulation(c).chunk(2, dim=1)
        h = self.out_linear(modulate(self.out_norm(h), shift, scale))  # (B, N, p * p * C)
        h = h.unflatten(1, self.grid).unflatten(3, (self.patch, self.patch, self.out_channels))  # (B, h, w, p, p, C)
        h = h.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)  # (B, C, H, W)
        return h if depth is None else (h, tokens)
