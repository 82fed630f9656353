"""Seeds as data: the samples that a generator is to make, in the same shards for any number of processes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rcg_lightning.arguments import Checked, PositiveInt
from rcg_lightning.data.index_samplers import FixedBatches, Keys, ranges_of, rank_range
from rcg_lightning.data.shards import Shard
from rcg_lightning.types import Batch, require

ON_THE_HOST = ("index", "seed", "position", "label")  # read there: a batch on a device would make the host wait


class SeedDataset(Dataset[Batch]):
    """A data set whose items are batches with ``index``, ``seed`` and ``position`` (B,), and the carried columns.

    Args:
        seeds: (n,) int64.
        carried: tensors with a row for each seed, such as ``label`` (n,) or ``representation`` (n, R).
    """

    def __init__(self, seeds: Tensor, carried: Mapping[str, Tensor]) -> None:
        for name, rows in carried.items():
            require(len(rows) == len(seeds), f"{name!r} has {len(rows)} rows for {len(seeds)} seeds: give one for each")
        self.seeds = seeds
        self.carried = dict(carried)
        self.positions = positions_of(seeds)

    def __getitem__(self, keys: Keys) -> Batch:
        return self.at(torch.from_numpy(keys.index))

    def at(self, index: Tensor) -> Batch:
        """Return the batch of the seeds at ``index`` (B,)."""
        batch: Batch = {"index": index, "seed": self.seeds[index], "position": self.positions[index]}
        for name, rows in self.carried.items():
            batch[name] = rows[index]  # type: ignore[literal-required]
        return batch


def positions_of(seeds: Tensor) -> Tensor:
    """Return the positions (n,) of samples with ``seeds`` (n,), from which their rows in tiles follow: the seeds.

    Where a seed occurs several times, such as under several conditions, positions are those in the request, so that
    the samples of one seed share tiles.
    """
    return seeds if len(seeds.unique()) == len(seeds) else torch.arange(len(seeds))


class SeedDataModule(Checked, LightningDataModule):
    """Seeds for ``Trainer.predict``: those of the shards that ``only`` selects, else the range of this process.

    Args:
        seeds: one for each sample; a seed may occur several times.
        batch_size: samples that are generated at once, rounded up to whole tiles.
        carried: tensors that join their seeds in a batch, with one row for each seed.
        tile: samples that the generator computes together; a batch that cuts a tile would compute it twice.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        batch_size: PositiveInt = 256,
        carried: Mapping[str, Tensor] | None = None,
        tile: PositiveInt = 1,
    ) -> None:
        super().__init__()
        require(len(seeds) > 0, "sampling needs at least one seed: give a number greater than 0")
        self.dataset = SeedDataset(torch.tensor(seeds, dtype=torch.int64, device="cpu"), carried or {})
        self.batch_size = -(-batch_size // tile) * tile
        self._ranges: list[tuple[int, int]] | None = None

    def __len__(self) -> int:
        return len(self.dataset.seeds)

    def only(self, shards: list[Shard]) -> None:
        """Use the rows of ``shards`` only; no batch crosses the end of a shard."""
        self._ranges = ranges_of(shards)
        # there may be more processes than missing shards
        self.allow_zero_length_dataloader_with_multiple_devices = True

    def predict_dataloader(self) -> DataLoader[Batch]:
        rank, world = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        ranges = [rank_range(len(self), rank, world)] if self._ranges is None else self._ranges
        parts = [part for start, stop in ranges for part in self._at_tiles(start, stop)]
        sampler = FixedBatches(parts, views=1, batch_size=self.batch_size)
        return DataLoader(dataset=self.dataset, sampler=sampler, batch_size=None, collate_fn=_unchanged)

    def _at_tiles(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Cut a range where the next batch of whole tiles begins."""
        cut = start + int(-self.dataset.positions[start]) % self.batch_size if start < stop else stop
        return [part for part in ((start, min(cut, stop)), (cut, stop)) if part[0] < part[1]]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        moved = super().transfer_batch_to_device(batch, device, dataloader_idx)
        return moved | {name: batch[name] for name in ON_THE_HOST if name in batch}


def _unchanged(batch: Any) -> Any:
    return batch
