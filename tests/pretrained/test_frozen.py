import copy
import pickle

import torch
from torch import nn

from rcg_lightning.pretrained.frozen import Frozen


def make():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))


class Owner(nn.Module):
    def __init__(self):
        super().__init__()
        self.own = nn.Linear(1, 1)
        self.frozen = Frozen(make)


def test_a_frozen_network_is_not_part_of_its_owner():
    owner = Owner()
    owner.frozen.setup()
    assert set(owner.state_dict()) == {"own.weight", "own.bias"}
    assert copy.deepcopy(owner).frozen is owner.frozen


def test_it_stays_in_eval_mode_without_gradients_to_its_weights():
    owner = Owner().train()
    x = torch.randn(3, 4, requires_grad=True)
    assert torch.equal(owner.frozen(x), owner.frozen(x))
    owner.frozen(x).sum().backward()
    assert x.grad is not None
    assert all(not p.requires_grad and p.grad is None for p in owner.frozen.module.parameters())


def test_setup_takes_no_random_numbers_and_is_deterministic():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first = Frozen(make)
    first.setup()
    assert torch.equal(torch.rand(2), expected)
    second = Frozen(make)
    x = torch.randn(2, 4)
    assert torch.equal(first(x), second(x))


def test_autocast_changes_nothing():
    frozen, x = Frozen(make), torch.randn(2, 4)
    expected = frozen(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, half = frozen(x), frozen(x.bfloat16())
    assert mixed.dtype == half.dtype == torch.float32
    assert torch.equal(expected, mixed)


def test_declared_precision_is_used():
    frozen = Frozen(make, torch.float64)
    assert frozen(torch.randn(2, 4)).dtype == torch.float64


def test_a_network_built_in_inference_mode_passes_gradients():
    frozen = Frozen(make)
    with torch.inference_mode():
        frozen(torch.randn(2, 4))
    x = torch.randn(2, 4, requires_grad=True)
    frozen(x).sum().backward()
    assert x.grad is not None


def test_release_and_pickle_drop_the_network():
    frozen = Frozen(make)
    x = torch.randn(2, 4)
    before = frozen(x)
    other = pickle.loads(pickle.dumps(frozen))
    assert not other.ready
    frozen.release()
    assert not frozen.ready
    assert torch.equal(frozen(x), before)
    assert torch.equal(other(x), before)
