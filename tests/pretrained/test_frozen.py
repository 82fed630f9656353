import copy
import pickle
import random
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from rcg_lightning.core.precision import float32_precision, uses_tensor_cores
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
    def greedy():
        random.random(), np.random.rand()
        return make()

    def draw():
        return torch.rand(2).tolist(), np.random.rand(), random.random()

    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    expected = draw()
    for restore, state in zip((torch.set_rng_state, np.random.set_state, random.setstate), states):
        restore(state)
    first = Frozen(greedy)
    first.setup()
    assert draw() == expected
    second = Frozen(make)
    x = torch.randn(2, 4)
    assert torch.equal(first(x), second(x))


@pytest.mark.parametrize(("precision", "expected"), [("bf16", True), ("high", True), (None, True), ("highest", False)])
def test_convolutions_are_channels_last_where_tensor_cores_compute_them(monkeypatch, precision, expected):
    def as_on_a_gpu(device, given):
        return uses_tensor_cores("cuda", given)

    monkeypatch.setattr("rcg_lightning.pretrained.frozen.uses_tensor_cores", as_on_a_gpu)
    monkeypatch.setattr("rcg_lightning.pretrained.frozen.frozen_precision", lambda *_: nullcontext())  # meta has none
    frozen = Frozen(lambda: nn.Conv2d(2, 3, 3), precision)
    assert frozen(torch.empty(1, 2, 4, 4, device="meta")).shape == (1, 3, 2, 2)
    assert frozen.module.weight.is_contiguous(memory_format=torch.channels_last) is expected


def test_setup_seeds_no_gpu_and_restores_each_one_that_runs(monkeypatch):
    states = {0: torch.tensor([1], dtype=torch.uint8), 1: torch.tensor([2], dtype=torch.uint8)}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [state.clone() for state in states.values()])
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", lambda given: states.update(enumerate(given)))
    seeded_all = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded_all.append)

    def greedy():
        states[1] = torch.tensor([9], dtype=torch.uint8)
        return make()

    Frozen(greedy).setup()
    assert [state.item() for state in states.values()] == [1, 2]
    assert not seeded_all


def test_a_process_without_cuda_does_not_start_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: pytest.fail("starts CUDA"))
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("is done at the start of CUDA"))
    Frozen(make).setup()


def test_autocast_changes_nothing():
    frozen, x = Frozen(make), torch.randn(2, 4)
    expected = frozen(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, half = frozen(x), frozen(x.bfloat16())
    assert mixed.dtype == half.dtype == torch.float32
    assert torch.equal(expected, mixed)


class Watch(nn.Module):
    """A network that records in what it computes."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.seen = []

    def forward(self, x):
        y = self.layer(x)
        self.seen.append((y.dtype, torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
        return y


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("highest", (torch.float32, False, False)),
        ("high", (torch.float32, True, True)),
        ("bf16", (torch.bfloat16, False, False)),
        (None, (torch.bfloat16, True, True)),
    ],
)
def test_it_computes_in_its_own_precision_or_in_the_callers(precision, expected):
    frozen = Frozen(Watch, precision)
    with torch.autocast("cpu", torch.bfloat16), float32_precision("high"):
        output = frozen(torch.randn(2, 4))
        assert torch.is_autocast_enabled("cpu")
        assert torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cudnn.allow_tf32
    assert output.dtype == torch.float32
    assert frozen.module.seen == [expected]
    assert frozen.module.layer.weight.dtype == torch.float32


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
