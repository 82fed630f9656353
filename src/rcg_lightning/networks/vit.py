"""The Vision Transformer of MoCo v3. Those of DINO, iBOT and DeiT differ only in their position table."""

import math
from functools import partial
from typing import Any

import timm.models.vision_transformer as timm_vit
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rcg_lightning.arguments import Depth, ImageSize, MLPRatio, Width
from rcg_lightning.config import ConfigMixin
from rcg_lightning.networks.layers import run_block
from rcg_lightning.types import require


class VisionTransformer(ConfigMixin, timm_vit.VisionTransformer):
    """timm's Vision Transformer with MoCo v3's initialisation and position table; returns the class token's features.

    Its state dict has the names of the official MoCo v3 files (``blocks.0.attn.qkv.weight``, ...), without the head.
    Pre-norm blocks, LayerNorm eps 1e-6, exact GELU, qkv with bias.

    Args:
        image_size: height and width of the image in pixels, a multiple of ``patch``.
        patch: side of a patch in pixels.
        channels: channels of the image.
        width: width of a token and of the output.
        depth: number of blocks.
        heads: attention heads; MoCo v3 has 12 in its ViT-S of width 384, where others have 6.
        mlp_ratio: hidden width of a block's MLP over ``width``.
        freeze_patches: leave the patch projection at its random initial values, as MoCo v3 does for stability.
        checkpointing: recompute activations in the backward pass instead of storing them: less memory, a third slower.

    Attributes:
        class_token_alone: the last block computes only keys and values for the other tokens, as nothing else of them
            is used; the result is the same up to rounding.
    """

    class_token_alone = True

    def __init__(
        self,
        image_size: ImageSize = 224,
        patch: Width = 16,
        channels: Width = 3,
        width: Width = 768,
        depth: Depth = 12,
        heads: Width = 12,
        mlp_ratio: MLPRatio = 4.0,
        freeze_patches: bool = True,
        checkpointing: bool = False,
    ) -> None:
        require(
            image_size % patch == 0, f"an image of {image_size} pixels cannot be split into patches of {patch}: pad it"
        )
        fits = image_size <= 256 * patch  # attention compares all patches with each other
        require(fits, f"VisionTransformer: an image has 256 x 256 patches at most, not {image_size // patch} a side")
        require(width % heads == 0, f"a width of {width} cannot be split into {heads} attention heads")
        super().__init__(
            img_size=image_size,
            patch_size=patch,
            in_chans=channels,
            num_classes=0,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            weight_init="skip",  # initialise() does it
        )
        self.dim, self.checkpointing = width, checkpointing
        self.initialise()
        if freeze_patches:
            self.patch_embed.proj.requires_grad_(False)

    @torch.no_grad()
    def initialise(self) -> None:
        """MoCo v3's initialisation: Xavier uniform weights, zero biases, and the fixed position table."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                if name.endswith("qkv"):  # query, key and value are three matrices, each with its own fan-out
                    bound = math.sqrt(6 / (module.out_features // 3 + module.in_features))
                    nn.init.uniform_(module.weight, -bound, bound)
                else:
                    nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        patches: Any = self.patch_embed.proj
        bound = math.sqrt(6 / (math.prod(patches.weight.shape[1:]) + self.dim))
        nn.init.uniform_(patches.weight, -bound, bound)
        nn.init.zeros_(patches.bias)
        table: Any = self.pos_embed
        rows, columns = self.patch_embed.grid_size  # type: ignore[misc]
        table.copy_(position_table(rows, columns, self.dim))
        table.requires_grad_(False)  # fixed, but stored in the official files
        nn.init.normal_(self.cls_token, std=1e-6)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> Tensor:
        """Normalised image (B, C, H, W) -> features of the class token (B, width), after the final norm."""
        expected = (self.in_chans, *self.patch_embed.img_size)  # type: ignore[misc]
        require(
            tuple(image.shape[1:]) == expected,
            f"this Vision Transformer needs images of {expected}, got {tuple(image.shape[1:])}: resize them",
        )
        x = self._pos_embed(self.patch_embed(image))  # (B, 1 + N, width)
        for block in self.blocks[:-1]:
            x = run_block(block, x, checkpointing=self.checkpointing)
        last = self.blocks[-1]
        x = class_token_block(last, x) if self.class_token_alone else last(x)  # (B, 1, width), or all (B, 1 + N, width)
        return self.norm(x)[:, 0]


def class_token_block(block: Any, x: Tensor) -> Tensor:
    """Return the class token of ``block(x)``: tokens x (B, N, D) -> (B, 1, D).

    The other tokens give only keys and values, which saves most of the block's work. Exact up to rounding.
    """
    attention = block.attn
    dim = x.shape[2]
    normed = block.norm1(x)
    weight, bias = attention.qkv.weight, attention.qkv.bias
    query = F.linear(normed[:, :1], weight[:dim], bias[:dim])  # (B, 1, D)
    key_value = F.linear(normed, weight[dim:], bias[dim:])  # (B, N, 2 D)
    query = query.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)  # (B, heads, 1, d)
    key_value = key_value.unflatten(-1, (2, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (2, B, heads, N, d)
    mixed = F.scaled_dot_product_attention(query, key_value[0], key_value[1])  # (B, heads, 1, d)
    x = x[:, :1] + attention.proj(mixed.transpose(1, 2).flatten(2))  # (B, 1, D)
    return x + block.mlp(block.norm2(x))


def position_table(rows: int, columns: int, dim: int) -> Tensor:
    """MoCo v3's fixed table (1, 1 + rows * columns, dim): zeros for the class token, then [sin, cos] of row and column.

    The first half encodes the row and the second the column, the opposite of the tables of MAGE and DiT.
    """
    require(dim % 4 == 0, f"a fixed position table needs a width divisible by 4, got {dim}")
    omega = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float32) / (dim // 4))  # (dim / 4,)
    row = torch.arange(rows, dtype=torch.float32).repeat_interleave(columns)[:, None] * omega  # (N, dim / 4)
    column = torch.arange(columns, dtype=torch.float32).repeat(rows)[:, None] * omega  # (N, dim / 4)
    table = torch.cat([row.sin(), row.cos(), column.sin(), column.cos()], dim=1)  # (N, dim)
    return torch.cat([table.new_zeros(1, dim), table])[None]
