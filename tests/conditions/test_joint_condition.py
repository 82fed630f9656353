import pytest
import torch

from rcg_lightning.conditions.class_label import ClassCondition
from rcg_lightning.conditions.joint import JointCondition
from rcg_lightning.conditions.representation import RepresentationCondition
from rcg_lightning.errors import UserError
from rcg_lightning.types import Classes, Vector

SEEDS = torch.arange(3)


def test_conditions_are_joined_in_order(spec, bare_spec):
    condition = JointCondition([RepresentationCondition(), ClassCondition()])
    assert condition.needs == {"representation", "label"}
    assert condition.parts(spec) == (Vector(6), Classes(10))
    batch = {"label": torch.tensor([3, 1, 1]), "representation": torch.randn(3, 6)}
    observed = condition.observe(batch)
    assert observed[0] is batch["representation"]
    assert observed[1] is batch["label"]
    sampled = condition.sample({"seed": SEEDS, **batch})
    assert torch.equal(sampled[0], batch["representation"])
    with pytest.raises(UserError, match="needs labels"):
        JointCondition([ClassCondition()]).parts(bare_spec)


def test_a_class_conditional_prior_receives_the_label(prior, built):
    stage, path = prior(ClassCondition())
    condition = built(JointCondition([RepresentationCondition(), ClassCondition()]))
    condition.use_prior(path)
    labels = torch.tensor([7, 7, 2])
    sampled = condition.sample({"seed": SEEDS, "label": labels})
    assert torch.equal(sampled[0], stage.sample({"seed": SEEDS, "label": labels}))
    assert torch.equal(sampled[1], labels)
    # without a label, prior and class condition sample the same one
    representation, label = condition.sample({"seed": SEEDS})
    assert torch.equal(representation, stage.sample({"seed": SEEDS, "label": label}))


def test_nothing_cannot_be_joined():
    with pytest.raises(UserError, match="at least one"):
        JointCondition([])
