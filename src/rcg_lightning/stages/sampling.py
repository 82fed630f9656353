"""Stage 4: guided sampling, from seeds to images, on any number of processes."""

from lightning.pytorch import LightningModule
from torch import Tensor, nn

from rcg_lightning.arguments import Checked
from rcg_lightning.core.guidance import Guidance
from rcg_lightning.core.samplers import Sampler
from rcg_lightning.stages.generator import Generator
from rcg_lightning.types import Batch


class SamplingModule(LightningModule):
    """Base of modules that sample in ``predict_step``.

    Attributes:
        generator: the trained generator.
        ema_name: name of the EMA weights to sample with; None for the first.
    """

    generator: Generator
    ema_name: str | None = None

    def networks(self) -> list[nn.Module]:
        """The networks that sampling calls, including those of a prior; ``trainer.compile`` compiles these."""
        prior = self.generator.condition.prior
        prior_networks = prior.sampling_networks() if isinstance(prior, Generator) else []
        return [*self.generator.sampling_networks(self.ema_name), *prior_networks]


class GuidedSampling(Checked, SamplingModule):
    """Predicts a generator's sample for each seed: a column of images or representations.

    Args:
        generator: the trained generator, with a prior if its condition is sampled from one.
        guidance: None for the generator's own.
        sampler: None for the generator's own.
    """

    def __init__(self, generator: Generator, guidance: Guidance | None = None, sampler: Sampler | None = None) -> None:
        super().__init__()
        self.generator, self.guidance, self.sampler = generator, guidance, sampler

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        return self.generator.columns(self.generator.sample(batch, self.guidance, self.sampler))
