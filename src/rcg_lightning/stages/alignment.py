"""REPA: an auxiliary loss that aligns the tokens of a diffusion transformer with the features of an encoder."""

from dataclasses import replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rcg_lightning.arguments import Depth, PositiveFloat, Width
from rcg_lightning.config import ConfigMixin
from rcg_lightning.errors import UserError
from rcg_lightning.networks.dit import DiT
from rcg_lightning.pretrained.encoders import Encoder
from rcg_lightning.types import DataSpec, require

COLUMN = "alignment"  # the data spec's column that records the encoder


class Alignment(ConfigMixin, nn.Module):
    """Minus the cosine between a block's projected tokens and the encoder's features (Yu et al. 2024, REPA).

    Both are compared at the same position of the image. The encoder reads the clean image of the batch. Where its
    feature map has another grid than the transformer, it is interpolated; an encoder without a map (principal
    components) gives the same vector at every position. The encoder is frozen and in no checkpoint. The projector is
    trained and in the checkpoint; sampling does not need it.

    Args:
        encoder: its patch tokens, or feature map, are the target.
        depth: number of blocks after which the tokens are read (REPA: 8 of DiT-XL's 28).
        weight: weight of this loss; the denoiser's is 1.
        hidden: width of the projector, a three-layer MLP.
    """

    def __init__(self, encoder: Encoder, depth: Depth = 8, weight: PositiveFloat = 0.5, hidden: Width = 2048) -> None:
        super().__init__()
        self.encoder, self.depth, self.weight, self.hidden = encoder, depth, weight, hidden

    def build(self, network: nn.Module, spec: DataSpec) -> DataSpec:
        """Create the projector for the tokens of ``network``; return the data spec with the encoder's identity.

        Raises:
            UserError: the network has no tokens, or fewer blocks.
        """
        if not isinstance(network, DiT):
            raise UserError(f"an alignment needs the tokens of a DiT, and {type(network).__name__} has none")
        fits = 1 <= self.depth <= network.depth
        require(fits, f"the alignment reads tokens after block {self.depth}, the DiT has {network.depth}: change depth")
        if COLUMN not in spec.columns:  # a checkpoint's spec has it: then the encoder may be missing
            with torch.no_grad():
                example = self.encoder.feature_map(torch.zeros(1, *spec.image))  # (1, D, h, w)
            columns = {**spec.columns, COLUMN: {"shape": [example.shape[1]], "online": True}}
            spec = replace(spec, columns=columns, identities={**spec.identities, COLUMN: self.encoder.identity})
        self.grid, self.identity = network.grid, spec.identities[COLUMN]
        sizes = [network.width, self.hidden, self.hidden, spec.columns[COLUMN]["shape"][0]]
        layers = [nn.Linear(width_in, width_out) for width_in, width_out in pairwise(sizes)]
        self.projector = nn.Sequential(layers[0], nn.SiLU(), layers[1], nn.SiLU(), layers[2])
        return spec

    def setup(self) -> None:
        """Load the encoder; raise a UserError where the projector was trained with another one."""
        mine = self.encoder.identity
        require(mine == self.identity, f"the alignment was trained with encoder {self.identity}, this one is {mine}")

    def forward(self, tokens: Tensor, image: Tensor) -> Tensor:
        """Tokens (B, N, width) of a DiT, image (B, C, H, W) in [0, 1] -> mean loss in [-1, 1]."""
        with torch.no_grad():
            target = self.encoder.feature_map(image)  # (B, D, h, w)
            if target.shape[2:] != self.grid:
                target = F.interpolate(target, self.grid, mode="bilinear", align_corners=False, antialias=True)
        projected = self.projector(tokens)  # (B, N, D)
        return -F.cosine_similarity(projected.float(), target.flatten(2).transpose(1, 2), dim=2).mean()
