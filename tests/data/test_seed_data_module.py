"""Seeds for sampling: the same rows in the same shards for any number of processes."""

import pytest
import torch

from rcg_lightning.data.seed_data_module import SeedDataModule
from rcg_lightning.data.shards import cut
from rcg_lightning.errors import UserError


@pytest.mark.parametrize("world", [1, 2, 3])
def test_all_processes_together_see_every_seed_once(world):
    data = SeedDataModule(list(range(100, 123)), batch_size=4)
    shards = cut(23, 10)
    found = []
    for rank in range(world):
        data.only(shards[rank::world])
        for batch in data.predict_dataloader():
            assert len({int(i) // 10 for i in batch["index"]}) == 1, "a batch crosses the end of a shard"
            assert torch.equal(batch["seed"], batch["index"] + 100)
            found += batch["index"].tolist()
    assert sorted(found) == list(range(23))


def test_carried_columns_stay_with_their_seeds():
    data = SeedDataModule([5, 3, 5], batch_size=2, carried={"label": torch.tensor([1, 2, 3])})
    batches = list(data.predict_dataloader())
    assert [batch["seed"].tolist() for batch in batches] == [[5, 3], [5]]
    assert [batch["label"].tolist() for batch in batches] == [[1, 2], [3]]


@pytest.mark.parametrize("first", [0, 5])
def test_no_batch_cuts_a_tile(first):
    data = SeedDataModule(range(first, first + 40), batch_size=6, tile=8)
    batches = list(data.predict_dataloader())
    tiles = [set((batch["position"] // 8).tolist()) for batch in batches]
    assert sum(len(found) for found in tiles) == len(set().union(*tiles))
    assert torch.cat([batch["seed"] for batch in batches]).tolist() == list(range(first, first + 40))
    assert max(len(batch["seed"]) for batch in batches) == 8


def test_the_samples_of_one_seed_lie_side_by_side():
    positions = [b["position"].tolist() for b in SeedDataModule([7, 7, 7, 8], batch_size=3).predict_dataloader()]
    assert positions == [[0, 1, 2], [3]]
    assert SeedDataModule([7, 9, 8]).dataset.positions.tolist() == [7, 9, 8]


def test_what_the_host_reads_stays_there():
    data = SeedDataModule([3, 4], carried={"label": torch.tensor([1, 2]), "representation": torch.rand(2, 3)})
    (batch,) = data.predict_dataloader()
    moved = data.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert {name for name, values in moved.items() if values.is_meta} == {"representation"}


def test_wrong_arguments_are_rejected():
    with pytest.raises(UserError, match="at least one seed"):
        SeedDataModule([])
    with pytest.raises(UserError, match="'label' has 2 rows"):
        SeedDataModule([1, 2, 3], carried={"label": torch.zeros(2)})
