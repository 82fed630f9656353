"""Seeds as data: what a generator is asked to make, cut into the same pieces for any number of processes."""

from collections.abc import Mapping, Sequence

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rcg_lightning.types import Batch, require


class SeedData(Dataset[Batch]):
    """Chunks of seeds, each a whole batch: ``index`` (B,), ``seed`` (B,), and rows of what is ``carried``.

    Args:
        seeds: (n,) int64.
        chunk: seeds in a batch; the last one may be shorter.
        carried: tensors with n rows, such as ``label`` (n,) or ``representation`` (n, R).
        rank, world: this process takes chunks rank, rank + world, …
    """

    def __init__(self, seeds: Tensor, chunk: int, carried: Mapping[str, Tensor], rank: int = 0, world: int = 1) -> None:
        require(chunk > 0, f"a chunk holds at least one seed, not {chunk}")
        for name, rows in carried.items():
            require(len(rows) == len(seeds), f"{name!r} has {len(rows)} rows for {len(seeds)} seeds: give one for each")
        self.seeds = seeds
        self.chunk = chunk
        self.carried = dict(carried)
        self.starts = range(0, len(seeds), chunk)[rank::world]

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, number: int) -> Batch:
        part = slice(self.starts[number], self.starts[number] + self.chunk)
        index = torch.arange(part.start, min(part.stop, len(self.seeds)))
        batch: Batch = {"index": index, "seed": self.seeds[part]}
        for name, rows in self.carried.items():
            batch[name] = rows[part]  # type: ignore[literal-required]
        return batch


class Seeds(LightningDataModule):
    """The seeds ``start`` to ``start + count`` (not included), or an explicit list, for ``Trainer.predict``.

    ``chunk`` is the batch size, and the same for any number of processes: sample 17 is always made in the same company.
    ``carried`` tensors travel with their seeds.
    """

    def __init__(
        self,
        count: int = 0,
        start: int = 0,
        chunk: int = 64,
        seeds: Sequence[int] | None = None,
        carried: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        require((count > 0) != (seeds is not None), "give a count of seeds greater than 0, or a list of seeds")
        self.seeds = torch.arange(start, start + count) if seeds is None else torch.tensor(seeds, dtype=torch.int64)
        self.chunk = chunk
        self.carried = dict(carried or {})

    def __len__(self) -> int:
        return len(self.seeds)

    def predict_dataloader(self) -> DataLoader[Batch]:
        rank, world = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        return DataLoader(dataset=SeedData(self.seeds, self.chunk, self.carried, rank, world), batch_size=None)
