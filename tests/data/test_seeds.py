"""Seeds for sampling: the same chunks for any number of processes."""

import pytest
import torch

from rcg_lightning.data.seeds import SeedData, Seeds
from rcg_lightning.errors import UserError


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_chunks_are_the_same_for_any_number_of_processes(world):
    seeds = torch.arange(100, 123)
    whole = [batch["seed"].tolist() for batch in map(SeedData(seeds, 5, {}).__getitem__, range(5))]
    parts = {}
    for rank in range(world):
        part = SeedData(seeds, 5, {}, rank, world)
        for number in range(len(part)):
            batch = part[number]
            parts[int(batch["index"][0]) // 5] = batch["seed"].tolist()
    assert [parts[number] for number in range(5)] == whole
    assert [seed for chunk in whole for seed in chunk] == seeds.tolist()


def test_the_loader_carries_what_belongs_to_a_seed():
    data = Seeds(count=7, start=10, chunk=3, carried={"label": torch.arange(7) * 2})
    batches = list(data.predict_dataloader())
    assert [batch["seed"].tolist() for batch in batches] == [[10, 11, 12], [13, 14, 15], [16]]
    assert [batch["label"].tolist() for batch in batches] == [[0, 2, 4], [6, 8, 10], [12]]
    assert [batch["index"].tolist() for batch in batches][-1] == [6]


def test_explicit_seeds_and_wrong_ones():
    assert Seeds(seeds=[5, 3]).seeds.tolist() == [5, 3]
    with pytest.raises(UserError, match="count"):
        Seeds()
    with pytest.raises(UserError, match="'label' has 2 rows for 3 seeds"):
        Seeds(count=3, carried={"label": torch.zeros(2)}).predict_dataloader()
