import pytest
import torch

from rcg_lightning.conditions.cluster import ClusterCondition
from rcg_lightning.errors import UserError
from rcg_lightning.types import Classes, DataSpec

SEEDS = torch.arange(20_000)


def test_clusters_are_read_from_the_batch(spec, bare_spec):
    condition = ClusterCondition()
    assert condition.needs == {"cluster"}
    assert condition.parts(spec) == (Classes(3),)
    clusters = torch.tensor([2, 0])
    assert condition.observe({"cluster": clusters})[0] is clusters
    assert torch.equal(condition.sample({"seed": SEEDS[:2], "cluster": clusters})[0], clusters)
    with pytest.raises(UserError, match="needs clusters"):
        condition.parts(bare_spec)


def test_clusters_are_sampled_by_size_and_by_seed(built):
    condition = built(ClusterCondition())
    (clusters,) = condition.sample({"seed": SEEDS})
    counts = torch.bincount(clusters, minlength=3)
    expected = torch.tensor([0.6, 0.3, 0.1]) * len(SEEDS)
    assert len(counts) == 3
    assert bool(((counts - expected).abs() < 5 * expected.sqrt()).all())
    assert torch.equal(condition.sample({"seed": SEEDS.flip(0)})[0], clusters.flip(0))


def test_empty_clusters_are_never_sampled(built):
    spec = DataSpec((1, 8, 8), columns={"cluster": {"shape": [], "sizes": [0, 5, 0, 5, 0]}})
    (clusters,) = built(ClusterCondition(), spec).sample({"seed": SEEDS})
    assert set(clusters.tolist()) == {1, 3}


@pytest.mark.parametrize("wrong", [3, -1])
def test_a_cluster_out_of_range_is_named(built, wrong):
    with pytest.raises(UserError, match=f"class {wrong} "):
        built(ClusterCondition()).sample({"seed": SEEDS[:2], "cluster": torch.tensor([0, wrong])})
