"""The instances nearest to given centres."""

import torch

from rcg_lightning.data.instances import nearest_different


def test_a_row_near_several_centres_is_chosen_once():
    bank = torch.arange(20.0)[:, None]
    found = nearest_different(torch.tensor([[3.0]] * 11), bank)
    assert sorted(found.tolist()) == list(range(11)) or len(set(found.tolist())) == 11
    assert found[0] == 3
    assert sorted(nearest_different(torch.zeros(20, 1), bank).tolist()) == list(range(20))
