"""Stage 4: guided sampling, from seeds to images, on any number of processes."""

from collections.abc import Iterator
from contextlib import ExitStack

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from rcg_lightning.arguments import Checked
from rcg_lightning.core.counter_rng import fitting_tile, tile_numbers
from rcg_lightning.core.guidance import Guidance
from rcg_lightning.core.samplers import Sampler
from rcg_lightning.core.transfers import to_device
from rcg_lightning.data.seed_data_module import SeedDataModule, SeedDataset
from rcg_lightning.networks.cast_weights import cast_weights
from rcg_lightning.stages.base import lay_out
from rcg_lightning.stages.generator import Generator
from rcg_lightning.types import Batch, Raw


class PriorTiles:
    """Raw conditions of a request, sampled in whole tiles of the prior, whatever the size of the batches.

    A tile is sampled once, for all seeds of the request in it, and kept until a batch needs others.

    Args:
        generator: whose condition has a prior.
        request: all seeds.
        tile: samples that the prior computes together.
    """

    def __init__(self, generator: Generator, request: SeedDataset, tile: int) -> None:
        self._generator, self._request = generator, request
        self._numbers = tile_numbers(request.positions, tile)
        self._sampled: dict[int, tuple[Tensor, Raw]] = {}  # number of a tile -> its indices, their raw conditions

    def of(self, index: Tensor) -> Raw:
        """Return the raw conditions of the seeds at ``index`` (B,), on the host, in the request."""
        wanted = self._numbers[index].unique().tolist()
        self._sampled = {number: self._sampled.get(number) or self._tile(number) for number in wanted}
        indices = torch.cat([indices for indices, _ in self._sampled.values()])
        order = indices.argsort()
        found = to_device(order[torch.searchsorted(indices, index, sorter=order)], self._generator.device)
        return tuple(torch.cat(parts)[found] for parts in zip(*(raw for _, raw in self._sampled.values())))

    def _tile(self, number: int) -> tuple[Tensor, Raw]:
        indices = (self._numbers == number).nonzero()[:, 0]
        return indices, self._generator.sampled_conditions(self._request.at(indices))


def samples_by_tile(generator: Generator, count: int, rank: int = 0, world: int = 1) -> Iterator[Tensor]:
    """Yield the samples of the seeds 0, …, ``count`` - 1, a tile at a time: those of process ``rank`` of ``world``."""
    tile = fitting_tile(generator.tile, 0, count)
    for seeds in torch.arange(count).split(tile)[rank::world]:
        yield generator.sample({"seed": seeds}, tile=tile)


class SamplingModule(LightningModule):
    """Base of modules that sample in ``predict_step``.

    Attributes:
        generator: the trained generator.
        guidance, sampler: None for the generator's own.
        ema_name: name of the EMA weights to sample with; None for the first.
    """

    generator: Generator
    guidance: Guidance | None = None
    sampler: Sampler | None = None
    ema_name: str | None = None
    _prior_tiles: PriorTiles | None = None

    def __init__(self) -> None:
        super().__init__()
        self._settings = ExitStack()

    def on_predict_start(self) -> None:
        prior, data = self.generator.condition.prior, getattr(self.trainer, "datamodule", None)
        if prior is not None:
            with torch.inference_mode(False):
                prior.to(self.device)
        with self.trainer.precision_plugin.forward_context():
            # one copy for all batches, which CUDA graphs refer to
            self._settings.enter_context(cast_weights(self.networks(), self.device))
        if isinstance(prior, Generator) and isinstance(data, SeedDataModule):
            given = {"representation", "instance"} & data.dataset.carried.keys()
            self._prior_tiles = None if given else PriorTiles(self.generator, data.dataset, prior.tile)

    def on_predict_end(self) -> None:
        self._prior_tiles = None
        self._settings.close()

    def samples(self, batch: Batch) -> Tensor:
        """Generate the samples of a batch."""
        raw = None if self._prior_tiles is None else self._prior_tiles.of(batch["index"])
        return self.generator.sample(batch, self.guidance, self.sampler, self.ema_name, raw)

    def configure_model(self) -> None:
        lay_out(self)

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
        return self.generator.columns(self.samples(batch))
