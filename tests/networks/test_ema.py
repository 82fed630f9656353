import copy

import pytest
import torch
from torch import nn

from rcg_lightning.errors import UserError
from rcg_lightning.networks.ema import EMA


def modules():
    torch.manual_seed(0)
    return {"network": nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), "conditioner": nn.Embedding(4, 2)}


def walk(given, steps, ema):
    """Random steps of every weight, with the average after each; returns the weights of each step."""
    history = []
    for _ in range(steps):
        with torch.no_grad():
            for module in given.values():
                for parameter in module.parameters():
                    parameter.add_(torch.randn_like(parameter))
        ema.update(given)
        history.append([p.detach().clone() for module in given.values() for p in module.parameters()])
    return history


def parameters(ema, name=None):
    return [p for module in ema.averaged(name).values() for p in module.parameters()]


def test_average_is_the_geometric_sum():
    given = modules()
    start = [p.detach().clone() for module in given.values() for p in module.parameters()]
    ema = EMA(0.8)
    ema.build(given)
    history = walk(given, 5, ema)
    for i, averaged in enumerate(parameters(ema)):
        expected = 0.8**5 * start[i] + sum(0.2 * 0.8 ** (4 - n) * step[i] for n, step in enumerate(history))
        torch.testing.assert_close(averaged, expected)


def test_warm_up_begins_with_a_faster_average():
    given = modules()
    start = [p.detach().clone() for module in given.values() for p in module.parameters()]
    ema = EMA(0.5, warmup=True)
    ema.build(given)
    history = walk(given, 10, ema)
    for i, averaged in enumerate(parameters(ema)):
        expected = start[i]
        for n, step in enumerate(history, start=1):
            decay = min(0.5, (1 + n) / (10 + n))
            expected = decay * expected + (1 - decay) * step[i]
        torch.testing.assert_close(averaged, expected, rtol=1e-4, atol=1e-5)


def test_buffers_are_taken_over():
    given = modules()
    ema = EMA(0.9)
    ema.build(given)
    given["network"](torch.randn(8, 2) + 5)
    ema.update(given)
    for averaged, own in zip(ema.averaged()["network"].buffers(), given["network"].buffers()):
        assert torch.equal(averaged, own)


def test_several_decays_have_copies_of_their_own():
    given = modules()
    ema = EMA({"fast": 0.0, "slow": 1.0})
    ema.build(given)
    start = copy.deepcopy(parameters(ema))
    walk(given, 3, ema)
    now = [p for module in given.values() for p in module.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(parameters(ema, "slow"), start))
    assert all(torch.allclose(a, b) for a, b in zip(parameters(ema, "fast"), now))
    assert all(torch.allclose(a, b) for a, b in zip(parameters(ema), now))  # the first is the default


def test_copies_are_never_trained():
    given = modules()
    ema = EMA(0.9)
    ema.build(given)
    ema.train()
    assert not any(module.training for module in ema.modules())
    assert not any(p.requires_grad for p in ema.parameters())
    assert all(p.requires_grad for module in given.values() for p in module.parameters())
    with torch.no_grad():
        given["network"][0].weight.add_(1)
    assert not torch.equal(given["network"][0].weight, ema.averaged()["network"][0].weight)


@pytest.mark.parametrize("warmup", [False, True])
def test_state_carries_ema_weights_and_count(warmup, tmp_path):
    given = modules()
    ema = EMA(0.9, warmup)
    ema.build(given)
    walk(given, 4, ema)
    torch.save(ema.state_dict(), tmp_path / "ema.pt")
    again = EMA(0.9, warmup)
    again.build(modules())
    again.load_state_dict(torch.load(tmp_path / "ema.pt", weights_only=True))
    assert again.updates == 4
    other = copy.deepcopy(given)
    torch.manual_seed(3)
    walk(given, 2, ema)
    torch.manual_seed(3)
    walk(other, 2, again)
    assert all(torch.equal(a, b) for a, b in zip(parameters(ema), parameters(again)))


def test_an_average_may_be_named_by_its_decay():
    ema = EMA({"0.5": 0.5, "0.9": 0.9})
    given = modules()
    ema.build(given)
    walk(given, 2, ema)
    assert any(name.startswith("copies.0_5.") for name in ema.state_dict())
    assert not any(torch.equal(a, b) for a, b in zip(parameters(ema, "0.5"), parameters(ema, "0.9")))


@pytest.mark.parametrize("names", [["0.5", "0_5"], [""], ["keys"], ["training"], []])
def test_names_that_no_state_dict_can_have(names):
    with pytest.raises(UserError, match="average"):
        EMA(dict.fromkeys(names, 0.9))


def test_before_its_start_an_average_is_the_weights_themselves():
    given = modules()
    ema = EMA(0.5, start=3)
    ema.build(given)
    history = walk(given, 3, ema)
    for averaged, weight in zip(parameters(ema), history[-1]):
        assert torch.equal(averaged, weight)
    last = walk(given, 1, ema)[0]
    for averaged, before, weight in zip(parameters(ema), history[-1], last):
        torch.testing.assert_close(averaged, (before + weight) / 2)


def test_buffers_are_averaged_where_asked_for():
    given = modules()
    ema = EMA(0.75, buffers=True)
    ema.build(given)
    norm = given["network"][1]
    norm.running_mean.fill_(4.0)
    norm.num_batches_tracked.fill_(4)
    ema.update(given)
    averaged = ema.averaged()["network"][1]
    torch.testing.assert_close(averaged.running_mean, torch.ones(3))
    assert int(averaged.num_batches_tracked) == 4
