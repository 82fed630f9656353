"""What a generator models: pixels, or representations."""

import torch
from torch import Tensor

from rcg_lightning.pretrained.encoders import Encoder
from rcg_lightning.types import Batch, Codec, Facts, require


class Pixels(Codec):
    """The picture itself, in [-1, 1]."""

    def shape(self, facts: Facts) -> tuple[int, ...]:
        return facts.image

    def encode(self, batch: Batch) -> Tensor:
        """``batch["image"]`` in [0, 1] -> z (B, C, H, W) in [-1, 1]."""
        return batch["image"] * 2 - 1  # type: ignore[reportTypedDictNotRequiredAccess]

    def decode(self, z: Tensor) -> Tensor:
        """z (B, C, H, W) -> picture clamped to [0, 1]."""
        return ((z + 1) / 2).clamp(0, 1)


class Representations(Codec):
    """Representations, stored with the data or encoded from the pictures of each batch.

    Args:
        encoder: for data without stored representations.
    """

    makes = "representation"
    stream = 1

    def __init__(self, encoder: Encoder | None = None) -> None:
        self.encoder = encoder
        self.needs = frozenset({"representation"} if encoder is None else {"image"})

    def shape(self, facts: Facts) -> tuple[int, ...]:
        if self.encoder is not None and not facts.encoded_online:
            return (self.encoder.dim,)
        require(
            "representation" in facts.columns,
            "the data has no stored representations: extract them into a store and join it, or give an encoder",
        )
        return tuple(facts.columns["representation"]["shape"])

    def encode(self, batch: Batch) -> Tensor:
        """Return the stored representations (B, R), else those of ``batch["image"]``."""
        stored = batch.get("representation")
        if stored is not None:
            return stored
        require(self.encoder is not None, "the batch has no representations: join their store, or give an encoder")
        with torch.no_grad():
            return self.encoder(batch["image"])  # type: ignore[misc]

    def decode(self, z: Tensor) -> Tensor:
        """Representations are what they are: no picture is made of them here."""
        return z
