import torch

from rcg_lightning.conditions.none import NoCondition


def test_no_condition_is_empty(bare_spec):
    condition = NoCondition()
    assert (condition.needs, condition.parts(bare_spec)) == (frozenset(), ())
    assert condition.observe({"label": torch.tensor([3])}) == condition.sample({"seed": torch.arange(2)}) == ()
