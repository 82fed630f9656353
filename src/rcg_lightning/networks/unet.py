"""The U-Nets of ADM (Dhariwal & Nichol 2021), improved DDPM and LDM (Rombach et al. 2022) in one implementation."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rcg_lightning.arguments import BelowOne, Depth, Multiplier, PositiveInt, Width
from rcg_lightning.networks.layers import mlp_silu, run_block, sinusoidal_embedding
from rcg_lightning.networks.unet_blocks import (
    AttentionBlock,
    Blocks,
    Convolution,
    DoublingConvolution,
    ResidualBlock,
    Resize,
    SpatialTransformer,
    double,
    halve,
    zeroed,
)
from rcg_lightning.types import Backbone, require


class UNet(Backbone):
    """U-Net on images or latents that adds the condition to the timestep embedding. Agrees with RCG's ADM.

    Maps shrink from level to level, then grow again; every map of the downsampling path is concatenated to the input of
    one stage of the upsampling path. The defaults are those of ADM at 256 pixels.

    Args:
        width: base number of channels.
        multipliers: channels of each level over ``width``; each level after the first halves the map.
        depth: residual blocks of a level when downsampling; one more when upsampling.
        attention: side of the image over the side of the maps that have attention. The smallest map always has it.
        head_width: channels of an attention head.
        groups: groups of the norms.
        dropout: in the residual blocks.
        modulated: whether the timestep scales and shifts (ADM, improved DDPM) or is only added (LDM).
        residual_resizing: whether residual blocks halve and double the maps (ADM) or convolutions do (the others).
        checkpointing: recompute activations in the backward pass instead of storing them: less memory, a third slower.
    """

    def __init__(
        self,
        width: Width = 256,
        multipliers: Sequence[Multiplier] = (1, 1, 2, 2, 4, 4),
        depth: Depth = 2,
        attention: Sequence[PositiveInt] = (8, 16, 32),
        head_width: Width = 64,
        groups: Width = 32,
        dropout: BelowOne = 0.0,
        modulated: bool = True,
        residual_resizing: bool = True,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        require(
            width % 2 == 0 and width % groups == 0, f"a U-Net's width must be divisible by 2 and {groups}, not {width}"
        )
        require(len(multipliers) > 0, "a U-Net has at least one level: give a multiplier for each")
        self.width, self.depth, self.head_width, self.groups = width, depth, head_width, groups
        self.widths, self.attention = [width * factor for factor in multipliers], set(attention)
        self.dropout, self.modulated, self.residual_resizing = dropout, modulated, residual_resizing
        self.checkpointing = checkpointing
        self.time_dim = self.condition_width = 4 * width

    def build(self, shape: tuple[int, ...], condition_dim: int, out_factor: int = 1) -> None:
        require(len(shape) == 3, f"a U-Net models images or latents (C, H, W), not examples of shape {shape}")
        channels, height, width = shape
        factor = 2 ** (len(self.widths) - 1)
        divides = height % factor == 0 and width % factor == 0
        levels = len(self.widths)
        require(divides, f"a U-Net of {levels} levels needs sides that {factor} divides, not {height}x{width}")
        self.take_condition(condition_dim)
        self.time_embed = mlp_silu(self.width, self.time_dim)
        current = self.widths[0]
        self.down = nn.ModuleList([Blocks(Convolution(channels, current))])
        skips = [current]  # channels of the skip connections
        for level, out in enumerate(self.widths):
            for _ in range(self.depth):
                self.down.append(self.stage(current, out, level))
                current = out
                skips.append(current)
            if level < len(self.widths) - 1:
                self.down.append(Blocks(self.halving(current)))
                skips.append(current)
        self.middle = Blocks(self.residual(current, current), self.attend(current), self.residual(current, current))
        self.up = nn.ModuleList()
        for level, out in reversed(list(enumerate(self.widths))):
            for number in range(self.depth + 1):
                stage = self.stage(current + skips.pop(), out, level)
                current = out
                if level and number == self.depth:
                    stage.append(self.doubling(current))
                self.up.append(stage)
        self.out_norm = nn.GroupNorm(self.groups, current)
        self.out_conv = zeroed(nn.Conv2d(current, channels * out_factor, 3, padding=1))  # the network starts at zero

    def stage(self, channels: int, out: int, level: int) -> Blocks:
        """Return a residual block, with attention if maps of ``level`` have it."""
        blocks = Blocks(self.residual(channels, out))
        return blocks.append(self.attend(out)) if 2**level in self.attention else blocks  # type: ignore[return-value]

    def residual(self, channels: int, out: int, resize: Resize | None = None) -> ResidualBlock:
        """Return a residual block from ``channels`` to ``out``."""
        return ResidualBlock(channels, out, self.time_dim, self.groups, self.dropout, self.modulated, resize)

    def halving(self, channels: int) -> nn.Module:
        """Return a block that halves a map."""
        if self.residual_resizing:
            return self.residual(channels, channels, halve)
        return Convolution(channels, channels, stride=2)

    def doubling(self, channels: int) -> nn.Module:
        """Return a block that doubles a map."""
        if self.residual_resizing:
            return self.residual(channels, channels, double)
        return DoublingConvolution(channels, channels)

    def heads(self, channels: int) -> int:
        """Return the number of attention heads for maps of ``channels``."""
        fits = channels % self.head_width == 0
        require(fits, f"a U-Net's {channels} channels cannot be split into heads of {self.head_width}")
        return channels // self.head_width

    def take_condition(self, condition_dim: int) -> None:
        """Prepare for a condition of this width; 0 is no condition."""
        fits = condition_dim in (0, self.time_dim)
        require(fits, f"UNet adds the condition to the timestep: conditioner.dim must be {self.time_dim} or null")

    def attend(self, channels: int) -> nn.Module:
        """Return an attention block over the positions of a map."""
        return AttentionBlock(channels, self.heads(channels), self.groups)

    def time_embedding(self, t: Tensor, c: Tensor) -> Tensor:
        """Timesteps t (B,), condition c (B, condition_dim) -> (B, time_dim)."""
        t_emb = self.time_embed(sinusoidal_embedding(t, self.width))
        return t_emb + c if c.shape[1] else t_emb

    def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        t_emb = F.silu(self.time_embedding(t, c))  # (B, time_dim)
        h, skips = x, []
        for stage in self.down:
            h = self.run(stage, h, t_emb, c)  # (B, C', H', W')
            skips.append(h)
        h = self.run(self.middle, h, t_emb, c)
        for stage in self.up:
            h = self.run(stage, torch.cat([h, skips.pop()], dim=1), t_emb, c)
        return self.out_conv(F.silu(self.out_norm(h)))  # (B, C, H, W)

    def run(self, stage: nn.Module, h: Tensor, t_emb: Tensor, c: Tensor) -> Tensor:
        """Return ``stage(h, t_emb, c)``, recomputed in the backward pass with ``checkpointing``."""
        return run_block(stage, h, t_emb, c, checkpointing=self.checkpointing, random=self.dropout > 0)


class CrossAttentionUNet(UNet):
    """U-Net whose attention blocks read the condition as a single token. Agrees with RCG's LDM; defaults of LDM-8.

    Args:
        transformers: transformer blocks in each attention block.
        width, multipliers, depth, attention, head_width, groups, dropout, checkpointing: see ``UNet``.
    """

    def __init__(
        self,
        width: Width = 256,
        multipliers: Sequence[Multiplier] = (1, 2, 4),
        depth: Depth = 2,
        attention: Sequence[PositiveInt] = (1, 2, 4),
        head_width: Width = 32,
        groups: Width = 32,
        dropout: BelowOne = 0.0,
        transformers: Depth = 1,
        checkpointing: bool = False,
    ) -> None:
        super().__init__(width, multipliers, depth, attention, head_width, groups, dropout, False, False, checkpointing)
        self.transformers = transformers
        self.condition_width = 512  # of the official class embedding; representations keep their own width

    def take_condition(self, condition_dim: int) -> None:
        self.context_dim = condition_dim

    def attend(self, channels: int) -> nn.Module:
        return SpatialTransformer(channels, self.heads(channels), self.groups, self.context_dim, self.transformers)

    def time_embedding(self, t: Tensor, c: Tensor) -> Tensor:
        return self.time_embed(sinusoidal_embedding(t, self.width))
