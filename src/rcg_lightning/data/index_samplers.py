"""The order of images: an endless stream for training, exact ranges for everything else."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

from rcg_lightning.data import numpy_rng
from rcg_lightning.data.shards import Shard
from rcg_lightning.types import require


@dataclass(frozen=True)
class Keys:
    """The keys of one batch: which images it holds, and which view of each.

    Attributes:
        index: (B,) int64, positions in the data set.
        view: (B,) int64, fixed views; None in training.
        epoch: (B,) int64, number of the pass over the data; None outside training, where nothing is random.
    """

    index: np.ndarray
    view: np.ndarray | None = None
    epoch: np.ndarray | None = None


def batches_of(index: np.ndarray, batch_size: int) -> list[Keys]:
    """Return the keys of images in their deterministic view, in the order of ``index``."""
    parts = np.split(index, range(batch_size, len(index), batch_size))
    return [Keys(part, np.zeros_like(part)) for part in parts]


class StreamSampler(Sampler[Keys]):
    """Endless batches: position p of the stream is image ``perm_epoch[p % size]`` of epoch ``p // size``.

    Process ``rank`` of ``world`` takes the positions start + rank, start + rank + world, …. So a run can continue at
    any position, with another number of processes or workers. ``start`` is called for each new iterator.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        start: Callable[[], int] = lambda: 0,
    ) -> None:
        require(size > 0, "there are no images to train on: check the source's root, limit and eval_share")
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world = world
        self.start = start
        self._orders: dict[int, np.ndarray] = {}

    def __iter__(self) -> Iterator[Keys]:
        position = self.start()
        while True:
            p = position + self.rank + self.world * np.arange(self.batch_size)
            yield self.at(p)
            position += self.world * self.batch_size

    def at(self, p: np.ndarray) -> Keys:
        """Return the keys at positions ``p`` (B,) of the stream."""
        epoch, position = np.divmod(p, self.size)
        index = np.empty_like(p)
        for number in np.unique(epoch):
            inside = epoch == number
            index[inside] = self._order(int(number))[position[inside]]
        return Keys(index, epoch=epoch)

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            self._orders = {number: order for number, order in self._orders.items() if number == epoch - 1}
            self._orders[epoch] = numpy_rng.permutation(self.size, self.seed, epoch)
        return self._orders[epoch]


class FixedBatches(Sampler[Keys]):
    """Batches of every view of every image in some ranges, once and in order; no batch crosses the end of a range."""

    def __init__(self, ranges: Sequence[tuple[int, int]], views: int, batch_size: int) -> None:
        self.views = views
        self.batches = [
            (start * views + first, min(start * views + first + batch_size, stop * views))
            for start, stop in ranges
            for first in range(0, (stop - start) * views, batch_size)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Keys]:
        for first, last in self.batches:
            index, view = np.divmod(np.arange(first, last), self.views)
            yield Keys(index, view)


def rank_range(size: int, rank: int, world: int) -> tuple[int, int]:
    """Return the contiguous range, of ``size`` rows, of process ``rank``: exact, without padding."""
    return size * rank // world, size * (rank + 1) // world


def ranges_of(shards: Sequence[Shard]) -> list[tuple[int, int]]:
    """Return the bounds of ``shards``."""
    return [(shard.start, shard.stop) for shard in shards]
