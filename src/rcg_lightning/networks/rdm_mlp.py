"""The residual MLP of the representation diffusion model. It can also generate images of a few dozen pixels."""

import math

from torch import Tensor, nn

from rcg_lightning.arguments import BelowOne, Depth, Width
from rcg_lightning.networks.layers import mlp_silu, run_block, sinusoidal_embedding
from rcg_lightning.types import Backbone, require

TIMESTEP_FEATURES = 64  # sinusoids of the timestep in ModulatedMLP


class ResidualBlock(nn.Module):
    """LayerNorm-SiLU-Linear, plus timestep and condition, LayerNorm-SiLU-Dropout-Linear; residual."""

    def __init__(self, width: int, bottleneck: int, time_dim: int, condition_dim: int, dropout: float) -> None:
        super().__init__()
        self.in_norm = nn.LayerNorm(width)
        self.in_linear = nn.Linear(width, bottleneck)
        self.time = nn.Linear(time_dim, bottleneck)
        self.condition = nn.Linear(condition_dim, bottleneck) if condition_dim else None
        self.out_norm = nn.LayerNorm(bottleneck)
        self.dropout = nn.Dropout(dropout)
        self.out_linear = nn.Linear(bottleneck, width)

    def forward(self, h: Tensor, t_emb: Tensor, c: Tensor | None) -> Tensor:
        u = self.in_linear(nn.functional.silu(self.in_norm(h)))  # (B, bottleneck)
        u = u + self.time(t_emb)
        if self.condition is not None:
            u = u + self.condition(c)
        return h + self.out_linear(self.dropout(nn.functional.silu(self.out_norm(u))))  # (B, width)


class ResidualMLP(Backbone):
    """Agrees with the official RDM's network (rdm/modules/diffusionmodules/latentmlp.py).

    Args:
        width: of the residual stream.
        depth: number of blocks.
        bottleneck: width inside a block; None for ``width``.
        time_dim: width of the timestep embedding; None for ``width``.
        dropout: inside the blocks.
        checkpointing: recompute activations in the backward pass instead of storing them: less memory, a third slower.
    """

    def __init__(
        self,
        width: Width = 1536,
        depth: Depth = 12,
        bottleneck: Width | None = None,
        time_dim: Width | None = None,
        dropout: BelowOne = 0.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.width, self.depth, self.dropout = width, depth, dropout
        self.condition_width, self.checkpointing = width, checkpointing
        self.bottleneck, self.time_dim = bottleneck or width, time_dim or width

    def build(self, shape: tuple[int, ...], condition_dim: int, out_factor: int = 1) -> None:
        self.out_shape = (shape[0] * out_factor, *shape[1:])
        self.input_proj = nn.Linear(math.prod(shape), self.width)
        self.time_embed = mlp_silu(self.width, self.time_dim)
        self.blocks = nn.ModuleList(
            ResidualBlock(self.width, self.bottleneck, self.time_dim, condition_dim, self.dropout)
            for _ in range(self.depth)
        )
        self.out_norm = nn.LayerNorm(self.width, eps=1e-6)  # eps is 1e-5 in the blocks, as in the official code
        self.out_linear = nn.Linear(self.width, math.prod(self.out_shape))
        for linear in [self.out_linear, *(block.out_linear for block in self.blocks)]:
            nn.init.zeros_(linear.weight)  # every block starts as the identity, the network at zero
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        t_emb = nn.functional.silu(self.time_embed(sinusoidal_embedding(t, self.width)))  # (B, time_dim)
        condition = nn.functional.silu(c) if c.shape[1] else None  # (B, condition_dim)
        h = self.input_proj(x.flatten(1))  # (B, width)
        for block in self.blocks:
            h = run_block(block, h, t_emb, condition, checkpointing=self.checkpointing, random=self.dropout > 0)
        out = self.out_linear(nn.functional.silu(self.out_norm(h)))  # (B, prod(S))
        return out.view(-1, *self.out_shape)


class ModulatedBlock(nn.Module):
    """LayerNorm-Linear-SiLU-Dropout-Linear, shifted, scaled and gated by timestep and condition (DiT's adaLN-zero)."""

    def __init__(self, width: int, bottleneck: int, time_dim: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(time_dim, 3 * width)
        self.in_linear = nn.Linear(width, bottleneck)
        self.dropout = nn.Dropout(dropout)
        self.out_linear = nn.Linear(bottleneck, width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)  # the gate starts at zero: the block is the identity

    def forward(self, h: Tensor, t_emb: Tensor) -> Tensor:
        scale, shift, gate = self.modulation(t_emb).chunk(3, dim=1)  # each (B, width)
        u = nn.functional.silu(self.in_linear(self.norm(h) * (1 + scale) + shift))  # (B, bottleneck)
        return h + gate * self.out_linear(self.dropout(u))  # (B, width)


class ModulatedMLP(ResidualMLP):
    """Our residual MLP with modulated blocks. On small data it learns faster than the official additive blocks.

    Its arguments are those of ``ResidualMLP``. The condition is added to the timestep embedding, so both are equally
    wide.
    """

    def __init__(
        self,
        width: Width = 192,
        depth: Depth = 3,
        bottleneck: Width | None = None,
        time_dim: Width | None = None,
        dropout: BelowOne = 0.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__(width, depth, bottleneck, time_dim, dropout, checkpointing)
        self.condition_width = self.time_dim

    def build(self, shape: tuple[int, ...], condition_dim: int, out_factor: int = 1) -> None:
        fits = condition_dim in (0, self.time_dim)
        message = f"ModulatedMLP adds the condition to the timestep: conditioner.dim must be {self.time_dim} or null"
        require(fits, message)
        self.out_shape = (shape[0] * out_factor, *shape[1:])
        self.input_proj = nn.Linear(math.prod(shape), self.width)
        self.time_embed = mlp_silu(TIMESTEP_FEATURES, self.time_dim)
        self.blocks = nn.ModuleList(
            ModulatedBlock(self.width, self.bottleneck, self.time_dim, self.dropout) for _ in range(self.depth)
        )
        self.out_norm = nn.LayerNorm(self.width)
        self.out_linear = nn.Linear(self.width, math.prod(self.out_shape))
        nn.init.zeros_(self.out_linear.weight)
        nn.init.zeros_(self.out_linear.bias)

    def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        t_emb = self.time_embed(sinusoidal_embedding(t, TIMESTEP_FEATURES))  # (B, time_dim)
        t_emb = nn.functional.silu(t_emb + c if c.shape[1] else t_emb)
        h = self.input_proj(x.flatten(1))  # (B, width)
        for block in self.blocks:
            h = run_block(block, h, t_emb, checkpointing=self.checkpointing, random=self.dropout > 0)
        return self.out_linear(self.out_norm(h)).view(-1, *self.out_shape)
