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


def test_wrong_arguments_are_rejected():
    with pytest.raises(UserError, match="at least one seed"):
        SeedDataModule([])
    with pytest.raises(UserError, match="'label' has 2 rows"):
        SeedDataModule([1, 2, 3], carried={"label": torch.zeros(2)})
