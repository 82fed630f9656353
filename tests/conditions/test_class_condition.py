import pytest
import torch

from rcg_lightning.conditions.class_label import ClassCondition
from rcg_lightning.errors import UserError
from rcg_lightning.types import Classes

SEEDS = torch.arange(20_000)


def test_labels_are_read_from_the_batch(spec, bare_spec):
    condition = ClassCondition()
    assert condition.needs == {"label"}
    assert condition.parts(spec) == (Classes(10),)
    labels = torch.tensor([3, 1])
    assert condition.observe({"label": labels})[0] is labels
    assert torch.equal(condition.sample({"seed": SEEDS[:2], "label": labels})[0], labels)
    with pytest.raises(UserError, match="needs labels"):
        condition.parts(bare_spec)


def test_labels_are_sampled_uniformly_and_by_seed(built):
    condition = built(ClassCondition())
    (labels,) = condition.sample({"seed": SEEDS})
    assert labels.dtype == torch.int64
    counts = torch.bincount(labels, minlength=10)
    assert len(counts) == 10
    assert bool(((counts - 2000).abs() < 5 * 2000**0.5).all())
    assert torch.equal(condition.sample({"seed": SEEDS.flip(0)})[0], labels.flip(0))


@pytest.mark.parametrize("wrong", [10, -1])
def test_a_label_out_of_range_is_named(built, wrong):
    with pytest.raises(UserError, match=f"class {wrong} "):
        built(ClassCondition()).sample({"seed": SEEDS[:2], "label": torch.tensor([0, wrong])})
