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


class SeedDataset(Dataset[Batch]):
    """A data set whose items are batches with ``index`` (B,), ``seed`` (B,) and the columns that are ``carried``.

    Args:
        seeds: (n,) int64.
        carried: tensors with a row for each seed, such as ``label`` (n,) or ``representation`` (n, R).
    """

    def __init__(self, seeds: Tensor, carried: Mapping[str, Tensor]) -> None:
        for name, rows in carried.items():
            require(len(rows) == len(seeds), f"{name!r} has {len(rows)} rows for {len(seeds)} seeds: give one for each")
        self.seeds = seeds
        self.carried = dict(carried)

    def __getitem__(self, keys: Keys) -> Batch:
        index = torch.from_numpy(keys.index)
        batch: Batch = {"index": index, "seed": self.seeds[index]}
        for name, rows in self.carried.items():
            batch[name] = rows[index]  # type: ignore[literal-required]
        return batch


class SeedDataModule(Checked, LightningDataModule):
    """Seeds for ``Trainer.predict``: those of the shards that ``only`` selects, else the range of this process.

    Args:
        seeds: one for each sample; a seed may occur several times.
        batch_size: samples that are generated at once.
        carried: tensors that join their seeds in a batch, with one row for each seed.
    """

    def __init__(
        self, seeds: Sequence[int], batch_size: PositiveInt = 256, carried: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__()
        require(len(seeds) > 0, "sampling needs at least one seed: give a number greater than 0")
        self.dataset = SeedDataset(torch.tensor(seeds, dtype=torch.int64), carried or {})
        self.batch_size = batch_size
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
        sampler = FixedBatches(ranges, views=1, batch_size=self.batch_size)
        return DataLoader(dataset=self.dataset, sampler=sampler, batch_size=None, collate_fn=_unchanged)


def _unchanged(batch: Any) -> Any:
    return batch
