"""Sampling in batches: what a prior's tile computes is computed once, whatever the size of the batches."""

import pytest
import torch

from rcg_lightning.conditions.class_label import ClassCondition
from rcg_lightning.conditions.joint import JointCondition
from rcg_lightning.conditions.representation import RepresentationCondition
from rcg_lightning.data.seed_data_module import SeedDataModule
from rcg_lightning.pretrained.codecs import Representations
from rcg_lightning.stages.sampling import GuidedSampling, samples_by_tile
from rcg_lightning.types import DataSpec

SPEC = DataSpec((1, 8, 8), 10, {"representation": {"shape": [6]}})


@pytest.fixture
def sampled(make_stage, awake, save, trainer, tmp_path):
    """Samples of 40 seeds by a generator with a class-conditional prior; and the tiles that the prior computed."""
    prior = awake(make_stage(ClassCondition(), codec=Representations(), tile=32).build(SPEC))
    save(prior, tmp_path / "prior.ckpt")

    def sample(batch_size, **carried):
        condition = JointCondition([RepresentationCondition(tmp_path / "prior.ckpt"), ClassCondition()])
        generator = awake(make_stage(condition, tile=4).build(SPEC))
        tiles, loaded = [], generator.condition.prior
        sample_z = loaded.sample_z
        loaded.sample_z = lambda seeds, *args: tiles.append(len(seeds)) or sample_z(seeds, *args)
        data = SeedDataModule(range(40), batch_size, carried, tile=4)
        columns = trainer(tmp_path / "run", 1).predict(GuidedSampling(generator), data)
        return torch.cat([column["image"] for column in columns]), tiles

    return sample


@pytest.mark.parametrize("labelled", [True, False])
def test_each_tile_of_a_prior_is_computed_once(sampled, labelled):
    carried = {"label": torch.arange(40) % 7} if labelled else {}
    many, tiles = sampled(40, **carried)
    assert tiles == [32, 32]
    few, tiles = sampled(8, **carried)
    assert tiles == [32, 32]
    assert torch.equal(few, many)


def test_given_representations_need_no_prior(sampled):
    assert sampled(8, representation=torch.randn(40, 6))[1] == []


def test_few_samples_are_made_in_small_tiles_whatever_the_number_of_processes(make_stage, awake):
    rdm = awake(make_stage(codec=Representations(), tile=4096).build(SPEC))
    tiles, sample_z = [], rdm.sample_z
    rdm.sample_z = lambda seeds, *args: tiles.append(len(seeds)) or sample_z(seeds, *args)
    alone = list(samples_by_tile(rdm, 150))
    assert tiles == [64, 64, 64]
    assert sum(map(len, alone)) == 150
    ranks = [list(samples_by_tile(rdm, 150, rank, 2)) for rank in range(2)]
    assert all(torch.equal(samples, alone[i]) for i, samples in zip((0, 2, 1), ranks[0] + ranks[1], strict=True))
