"""An auxiliary loss for diffusion transformers: their tokens should say what a frozen encoder's say (REPA)."""

from dataclasses import replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rcg_lightning.config import ConfigMixin
from rcg_lightning.errors import UserError
from rcg_lightning.networks.dit import DiT
from rcg_lightning.pretrained.encoders import Encoder
from rcg_lightning.types import DataSpec, require

COLUMN = "alignment"  # under which the data spec of a stage note the encoder


class Alignment(ConfigMixin, nn.Module):
    """Minus the cosine between a block's projected tokens and the encoder's at the same place (Yu et al. 2024, REPA).

    The encoder sees the clean image of the batch. Where its map has another grid than the transformer, it is
    interpolated; an encoder without a map (principal components) gives the same vector everywhere. The encoder is
    frozen and in no checkpoint; the projector is trained, is in the checkpoint and is not needed for sampling.

    Args:
        encoder: whose patch tokens, or map of features, are aimed at.
        depth: after how many blocks the tokens are taken (REPA: 8 of DiT-XL's 28).
        weight: of this loss next to the denoiser's.
        hidden: width of the projector, a three-layer MLP.
    """

    def __init__(self, encoder: Encoder, depth: int = 8, weight: float = 0.5, hidden: int = 2048) -> None:
        super().__init__()
        require(weight > 0, f"the weight of an alignment is positive, not {weight}: leave the alignment out instead")
        self.encoder, self.depth, self.weight, self.hidden = encoder, depth, weight, hidden

    def build(self, network: nn.Module, spec: DataSpec) -> DataSpec:
        """Create the projector for tokens of ``network``; return data spec that say which encoder it is for.

        Raises:
            UserError: the network has no such tokens.
        """
        if not isinstance(network, DiT):
            raise UserError(f"an alignment needs the tokens of a DiT, and {type(network).__name__} has none")
        fits = 1 <= self.depth <= network.depth
        require(fits, f"the alignment takes tokens after block {self.depth} of a DiT of {network.depth}: change depth")
        if COLUMN not in spec.columns:  # a checkpoint knows already, and its encoder need not be at hand
            with torch.no_grad():
                example = self.encoder.feature_map(torch.zeros(1, *spec.image))  # (1, D, h, w)
            columns = {**spec.columns, COLUMN: {"shape": [example.shape[1]], "online": True}}
            spec = replace(spec, columns=columns, identities={**spec.identities, COLUMN: self.encoder.identity})
        self.grid, self.identity = network.grid, spec.identities[COLUMN]
        sizes = [network.width, self.hidden, self.hidden, spec.columns[COLUMN]["shape"][0]]
        layers = [nn.Linear(before, after) for before, after in pairwise(sizes)]
        self.projector = nn.Sequential(layers[0], nn.SiLU(), layers[1], nn.SiLU(), layers[2])
        return spec

    def setup(self) -> None:
        """Read the encoder; raise a UserError where it is not the one that the projector was trained for."""
        mine = self.encoder.identity
        require(mine == self.identity, f"the alignment was trained with encoder {self.identity}, this one is {mine}")

    def forward(self, tokens: Tensor, image: Tensor) -> Tensor:
        """Tokens (B, N, width) of a DiT, image (B, C, H, W) in [0, 1] -> mean loss in [-1, 1]."""
        with torch.no_grad():
            aim = self.encoder.feature_map(image)  # (B, D, h, w)
            if aim.shape[2:] != self.grid:
                aim = F.interpolate(aim, self.grid, mode="bilinear", align_corners=False, antialias=True)
        projected = self.projector(tokens)  # (B, N, D)
        return -F.cosine_similarity(projected.float(), aim.flatten(2).transpose(1, 2), dim=2).mean()
