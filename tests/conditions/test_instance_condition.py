import numpy as np
import pytest
import torch

from rcg_lightning.conditions.class_label import ClassCondition
from rcg_lightning.conditions.instance import InstanceCondition
from rcg_lightning.conditions.joint import JointCondition
from rcg_lightning.data.store_writer import StoreWriter
from rcg_lightning.errors import UserError
from rcg_lightning.types import Classes, Vector

SEEDS = torch.arange(20_000)


@pytest.fixture
def instances(tmp_path):
    """Write a store of instances: that of image i lies on axis i and has the neighbours' labels i and i + 5."""

    def write(encoder="encoder-1", labels=True, count=5):
        folder = tmp_path / f"{encoder}-{labels}"
        identity = {"dataset": "d", "split": "instances", "transform": "g", "representation": encoder}
        writer = StoreWriter(folder, count, 2, 4, identity)
        for shard in writer.shards:
            index = np.arange(shard.start, shard.stop)
            representations = np.eye(6, dtype=np.float32)[index][:, None].repeat(2, 1) * 3
            representations[:, 1] *= -1  # in the second view
            columns = {"representation": representations}
            if labels:
                columns["labels"] = np.stack([index, index + 5], 1)[:, None].repeat(2, 1)
            writer.write(shard, columns)
        writer.finish({name: {} for name in columns})
        return folder

    return write


def test_instances_are_sampled_by_seed_with_the_label_of_a_neighbour(instances, spec):
    joint = JointCondition([ClassCondition(), InstanceCondition()])
    assert joint.needs == {"label", "instance"}
    assert joint.parts(spec) == (Classes(10), Vector(6))
    joint.use_instances(instances())
    label, instance = joint.sample({"seed": SEEDS})
    index = instance.argmax(1)
    assert torch.bincount(index, minlength=5).float().div(len(SEEDS)).sub(0.2).abs().max() < 0.02  # uniform
    assert torch.equal(instance, torch.eye(6)[index])  # view 0
    assert (label % 5 == index).all()
    assert (label >= 5).float().mean() == pytest.approx(0.5, abs=0.02)
    same_label, same_instance = joint.sample({"seed": SEEDS[7:9]})
    assert torch.equal(same_label, label[7:9])
    assert torch.equal(same_instance, instance[7:9])
    given_label, _ = joint.sample({"seed": SEEDS[:2], "label": torch.tensor([1, 2])})
    assert given_label.tolist() == [1, 2]


def test_instances_have_length_one(built):
    condition = InstanceCondition()
    assert built(condition).needs == {"instance"}
    instance = torch.randn(3, 6)
    for raw in (condition.observe({"instance": instance}), condition.sample({"instance": 7 * instance})):
        torch.testing.assert_close(raw, (instance / instance.norm(dim=1, keepdim=True),))
    assert torch.equal(InstanceCondition(unit=False).observe({"instance": instance})[0], instance)


def test_missing_and_unsuitable_instances_are_rejected(instances, spec, bare_spec):
    condition = InstanceCondition()
    with pytest.raises(UserError, match="rcg neighbours"):
        condition.parts(bare_spec)
    condition.parts(spec)
    with pytest.raises(UserError, match="--instances"):
        condition.sample({"seed": SEEDS[:2]})
    with pytest.raises(UserError, match=r"encoder-2.*encoder-1"):
        condition.use_instances(instances("encoder-2"))
    joint = JointCondition([ClassCondition(), InstanceCondition()])
    joint.parts(spec)
    joint.use_instances(instances(labels=False))
    with pytest.raises(UserError, match="labels of their neighbours"):
        joint.sample({"seed": SEEDS[:2]})
