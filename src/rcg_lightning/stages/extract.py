"""Stage 1: what a frozen encoder says of every picture, computed once."""

from lightning.pytorch import LightningModule
from torch import Tensor

from rcg_lightning.pretrained.encoders import Encoder
from rcg_lightning.types import Batch


class Extraction(LightningModule):
    """Predicts the columns of a store from batches of pictures.

    Args:
        encoder: picture -> representation.
    """

    needs = frozenset({"image"})

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def setup(self, stage: str) -> None:
        self.encoder.setup()

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        return {"representation": self.encoder(batch["image"])}
