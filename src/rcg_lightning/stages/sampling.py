"""Stage 4: guided sampling, from seeds to pictures, on any number of processes."""

from lightning.pytorch import LightningModule
from torch import Tensor

from rcg_lightning.core.guidance import Guidance
from rcg_lightning.core.samplers import Sampler
from rcg_lightning.stages.generator import Generator
from rcg_lightning.types import Batch


class GuidedSampling(LightningModule):
    """Predicts what a generator makes of each seed: a column of pictures, or of representations.

    Args:
        generator: the trained generator, with its prior where its condition is sampled from one.
        guidance: None for the generator's own.
        sampler: None for the generator's own.
    """

    def __init__(self, generator: Generator, guidance: Guidance | None = None, sampler: Sampler | None = None) -> None:
        super().__init__()
        self.generator, self.guidance, self.sampler = generator, guidance, sampler

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        return self.generator.columns(self.generator.sample(batch, self.guidance, self.sampler))
