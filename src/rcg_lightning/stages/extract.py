"""Stage 1: representations, latents and tokens of every image, from frozen networks, computed once."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor

from rcg_lightning.pretrained.autoencoder_codec import AutoencoderCodec
from rcg_lightning.pretrained.encoders import Encoder
from rcg_lightning.types import Batch, require


class Extraction(LightningModule):
    """Predicts the columns of a store from batches of images; each image is read once for all columns.

    Args:
        encoder: image -> representation; None for no representations.
        codecs: image -> latent or tokens of an autoencoder, each in its own column.
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
            UserError: images of this shape do not fit an autoencoder.
        """
        columns: dict[str, dict[str, Any]] = {}
        if self.encoder is not None:
            columns["representation"] = {"encoder": self.encoder.identity}
        for codec in self.codecs:
            columns[codec.column] = {**codec.column_spec(image_shape), "autoencoder": codec.identity}
        return columns

    @property
    def identities(self) -> dict[str, str]:
        """Identity of the network that makes each column."""
        encoder = {} if self.encoder is None else {"representation": self.encoder.identity}
        return encoder | {codec.column: codec.identity for codec in self.codecs}

    def report(self) -> str:
        """Describe the networks, one line or more for each."""
        return "\n".join(network.report() for network in [self.encoder, *self.codecs] if network is not None)

    def setup(self, stage: str) -> None:
        if self.encoder is not None:
            self.encoder.setup()

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        image = batch["image"]
        columns = {} if self.encoder is None else {"representation": self.encoder(image)}
        return columns | {codec.column: codec.packed(codec.encoded(image)) for codec in self.codecs}
