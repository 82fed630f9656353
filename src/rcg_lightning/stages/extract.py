"""Stage 1: what frozen networks say of every image, computed once."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor

from rcg_lightning.pretrained.autoencoder_codec import AutoencoderCodec
from rcg_lightning.pretrained.encoders import Encoder
from rcg_lightning.types import Batch, require


class Extraction(LightningModule):
    """Predicts the columns of a store from batches of images, each of which is read once for all.

    Args:
        encoder: image -> representation; None for none.
        codecs: what autoencoders make of images, each in its column.
    """

    needs = frozenset({"image"})

    def __init__(self, encoder: Encoder | None, codecs: Sequence[AutoencoderCodec] = ()) -> None:
        super().__init__()
        names = [codec.column for codec in codecs]
        require(encoder is not None or bool(names), "nothing to extract: give an encoder, a codec, or both")
        require(len(set(names)) == len(names), f"a store has each column once, not {sorted(names)}: write two stores")
        self.encoder, self.codecs = encoder, list(codecs)

    def columns(self, image_shape: tuple[int, int, int]) -> dict[str, dict[str, Any]]:
        """Return the data spec of each column, for images (C, H, W).

        Raises:
            UserError: such images do not fit an autoencoder.
        """
        spec: dict[str, dict[str, Any]] = {}
        if self.encoder is not None:
            spec["representation"] = {"encoder": self.encoder.identity}
        for codec in self.codecs:
            spec[codec.column] = {**codec.column_spec(image_shape), "autoencoder": codec.identity}
        return spec

    @property
    def identities(self) -> dict[str, str]:
        """What made each column."""
        encoded = {} if self.encoder is None else {"representation": self.encoder.identity}
        return encoded | {codec.column: codec.identity for codec in self.codecs}

    def report(self) -> str:
        """Say what the networks are."""
        return "\n".join(maker.report() for maker in [self.encoder, *self.codecs] if maker is not None)

    def setup(self, stage: str) -> None:
        if self.encoder is not None:
            self.encoder.setup()

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        image = batch["image"]
        made = {} if self.encoder is None else {"representation": self.encoder(image)}
        return made | {codec.column: codec.packed(codec.encoded(image)) for codec in self.codecs}
