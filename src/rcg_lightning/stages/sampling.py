"""Stage 4: guided sampling, from seeds to images, on any number of processes."""

from lightning.pytorch import LightningModule
from torch import Tensor, nn

from rcg_lightning.core.guidance import Guidance
from rcg_lightning.core.samplers import Sampler
from rcg_lightning.stages.generator import Generator
from rcg_lightning.types import Batch


class SamplingModule(LightningModule):
    """Base of what makes samples in ``predict_step``.

    Attributes:
        generator: what makes them.
        ema_name: name of the EMA weights that it samples with; None for the first.
    """

    generator: Generator
    ema_name: str | None = None

    def networks(self) -> list[nn.Module]:
        """The networks that are called for samples, those of a prior too: what may be compiled."""
        prior = self.generator.condition.prior
        further = prior.sampling_networks() if isinstance(prior, Generator) else []
        return [*self.generator.sampling_networks(self.ema_name), *further]


class GuidedSampling(SamplingModule):
    """Predicts what a generator makes of each seed: a column of images, or of representations.

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
