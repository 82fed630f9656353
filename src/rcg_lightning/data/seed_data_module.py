"""SeedDataModule as data: what a generator is asked to make, cut into the same pieces for any number of processes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rcg_lightning.data.index_samplers import FixedBatches, Keys, ranges_of, share
from rcg_lightning.data.shards import Shard
from rcg_lightning.types import Batch, require


class SeedDataset(Dataset[Batch]):
    """Batches from keys: ``index`` (B,), ``seed`` (B,), and rows of what is ``carried``.

    Args:
        seeds: (n,) int64.
        carried: tensors with n rows, such as ``label`` (n,) or ``representation`` (n, R).
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


class SeedDataModule(LightningDataModule):
    """SeedDataModule for ``Trainer.predict``: those of the shards that ``only`` chose, or of this process's share.

    Args:
        seeds: one for each sample; the same may occur several times.
        batch_size: samples made at once.
        carried: tensors that travel with their seeds, one row each.
    """

    def __init__(
        self, seeds: Sequence[int], batch_size: int = 256, carried: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__()
        require(len(seeds) > 0, "sampling needs at least one seed: give a number greater than 0")
        require(batch_size > 0, f"a batch holds at least one seed, not {batch_size}")
        self.rows = SeedDataset(torch.tensor(seeds, dtype=torch.int64), carried or {})
        self.batch_size = batch_size
        self._ranges: list[tuple[int, int]] | None = None

    def __len__(self) -> int:
        return len(self.rows.seeds)

    def only(self, shards: list[Shard]) -> None:
        """Give the rows of ``shards``; no batch reaches over the end of one."""
        self._ranges = ranges_of(shards)
        # there may be more processes than shards that are still missing
        self.allow_zero_length_dataloader_with_multiple_devices = True

    def predict_dataloader(self) -> DataLoader[Batch]:
        rank, world = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        ranges = [share(len(self), rank, world)] if self._ranges is None else self._ranges
        sampler = FixedBatches(ranges, views=1, batch_size=self.batch_size)
        return DataLoader(dataset=self.rows, sampler=sampler, batch_size=None, collate_fn=_as_it_is)


def _as_it_is(batch: Any) -> Any:
    return batch
