import copy

import pytest
import torch
from torch import nn

from rcg_lightning.errors import UserError
from rcg_lightning.networks.ema import EMA, PowerEMA


def make_modules():
    torch.manual_seed(0)
    return {"network": nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), "conditioner": nn.Embedding(4, 2)}


def train(modules, steps, ema):
    """Change every weight at random and update ``ema`` in each step; return the weights after each."""
    history = []
    for _ in range(steps):
        with torch.no_grad():
            for module in modules.values():
                for parameter in module.parameters():
                    parameter.add_(torch.randn_like(parameter))
        ema.update(modules)
        history.append([p.detach().clone() for p in parameters(modules)])
    return history


def parameters(modules):
    return [p for module in modules.values() for p in module.parameters()]


def ema_parameters(ema, name=None):
    return parameters(ema.averaged(name))


def test_ema_weights_are_the_geometric_sum():
    modules = make_modules()
    initial = [p.detach().clone() for p in parameters(modules)]
    ema = EMA(0.8)
    ema.build(modules)
    history = train(modules, 5, ema)
    for i, ema_weight in enumerate(ema_parameters(ema)):
        expected = 0.8**5 * initial[i] + sum(0.2 * 0.8 ** (4 - n) * step[i] for n, step in enumerate(history))
        torch.testing.assert_close(ema_weight, expected)


def test_warmup_begins_with_small_decays():
    modules = make_modules()
    initial = [p.detach().clone() for p in parameters(modules)]
    ema = EMA(0.5, warmup=True)
    ema.build(modules)
    history = train(modules, 10, ema)
    for i, ema_weight in enumerate(ema_parameters(ema)):
        expected = initial[i]
        for n, step in enumerate(history, start=1):
            decay = min(0.5, (1 + n) / (10 + n))
            expected = decay * expected + (1 - decay) * step[i]
        torch.testing.assert_close(ema_weight, expected, rtol=1e-4, atol=1e-5)


def test_a_move_between_updates_is_followed():
    modules = make_modules()
    ema = EMA(0.5)
    ema.build(modules)
    train(modules, 1, ema)
    for module in (*modules.values(), ema):
        module.double()  # replaces buffers, as a move to another device does
    modules["network"][1].running_mean.fill_(3.0)
    train(modules, 1, ema)
    assert torch.equal(ema.averaged()["network"][1].running_mean, torch.full((3,), 3.0).double())
    assert ema.averaged()["conditioner"].weight.dtype == torch.float64


def test_a_copy_follows_the_modules_that_it_is_given():
    modules = make_modules()
    ema = EMA(0.0)
    ema.build(modules)
    train(modules, 1, ema)
    other = copy.deepcopy(ema)
    train(modules, 1, other)
    assert all(torch.allclose(a, b) for a, b in zip(ema_parameters(other), parameters(modules)))
    assert not any(torch.allclose(a, b) for a, b in zip(ema_parameters(ema), parameters(modules)))


def test_modules_are_walked_through_once():
    modules = make_modules()
    ema = EMA({"short": 0.5, "long": 0.9})
    ema.build(modules)
    train(modules, 1, ema)
    for module in modules.values():
        module.buffers = None  # a further walk would fail
    ema.update(modules)
    assert ema.updates == 2


def test_buffers_are_copied():
    modules = make_modules()
    ema = EMA(0.9)
    ema.build(modules)
    modules["network"](torch.randn(8, 2) + 5)
    ema.update(modules)
    for ema_buffer, buffer in zip(ema.averaged()["network"].buffers(), modules["network"].buffers()):
        assert torch.equal(ema_buffer, buffer)


def test_each_decay_has_its_own_copy():
    modules = make_modules()
    ema = EMA({"fast": 0.0, "slow": 1 - 1e-9})
    ema.build(modules)
    initial = copy.deepcopy(ema_parameters(ema))
    train(modules, 3, ema)
    present = parameters(modules)
    assert all(torch.allclose(a, b) for a, b in zip(ema_parameters(ema, "slow"), initial))
    assert all(torch.allclose(a, b) for a, b in zip(ema_parameters(ema, "fast"), present))
    assert all(torch.allclose(a, b) for a, b in zip(ema_parameters(ema), present))  # the first is the default


def test_copies_are_never_trained():
    modules = make_modules()
    ema = EMA(0.9)
    ema.build(modules)
    ema.train()
    assert not any(module.training for module in ema.modules())
    assert not any(p.requires_grad for p in ema.parameters())
    assert all(p.requires_grad for p in parameters(modules))
    with torch.no_grad():
        modules["network"][0].weight.add_(1)
    assert not torch.equal(modules["network"][0].weight, ema.averaged()["network"][0].weight)


@pytest.mark.parametrize("warmup", [False, True])
def test_the_state_contains_ema_weights_and_update_count(warmup, tmp_path):
    modules = make_modules()
    ema = EMA(0.9, warmup)
    ema.build(modules)
    train(modules, 4, ema)
    torch.save(ema.state_dict(), tmp_path / "ema.pt")
    loaded = EMA(0.9, warmup)
    loaded.build(make_modules())
    loaded.load_state_dict(torch.load(tmp_path / "ema.pt", weights_only=True))
    assert loaded.updates == 4
    other = copy.deepcopy(modules)
    torch.manual_seed(3)
    train(modules, 2, ema)
    torch.manual_seed(3)
    train(other, 2, loaded)
    assert all(torch.equal(a, b) for a, b in zip(ema_parameters(ema), ema_parameters(loaded)))


def test_ema_weights_may_be_named_by_their_decay():
    ema = EMA({"0.5": 0.5, "0.9": 0.9})
    modules = make_modules()
    ema.build(modules)
    train(modules, 2, ema)
    assert any(name.startswith("copies.0_5.") for name in ema.state_dict())
    assert not any(torch.equal(a, b) for a, b in zip(ema_parameters(ema, "0.5"), ema_parameters(ema, "0.9")))


@pytest.mark.parametrize("names", [["0.5", "0_5"], [""], ["keys"], ["training"], []])
def test_names_that_a_state_dict_cannot_have_are_rejected(names):
    with pytest.raises(UserError, match="EMA"):
        EMA(dict.fromkeys(names, 0.9))


def test_before_start_the_ema_weights_are_the_weights():
    modules = make_modules()
    ema = EMA(0.5, start=3)
    ema.build(modules)
    history = train(modules, 3, ema)
    for ema_weight, weight in zip(ema_parameters(ema), history[-1]):
        assert torch.equal(ema_weight, weight)
    last = train(modules, 1, ema)[0]
    for ema_weight, before, weight in zip(ema_parameters(ema), history[-1], last):
        torch.testing.assert_close(ema_weight, (before + weight) / 2)


def test_buffers_are_averaged_on_request():
    modules = make_modules()
    ema = EMA(0.75, buffers=True)
    ema.build(modules)
    norm = modules["network"][1]
    norm.running_mean.fill_(4.0)
    norm.num_batches_tracked.fill_(4)
    ema.update(modules)
    ema_norm = ema.averaged()["network"][1]
    torch.testing.assert_close(ema_norm.running_mean, torch.ones(3))
    assert int(ema_norm.num_batches_tracked) == 4


def initial_share(ema, steps):
    """Return the share of the initial weights in the EMA weights after ``steps`` updates, and the EMA weights."""
    module = nn.Linear(1, 1, bias=False)
    nn.init.ones_(module.weight)
    ema.build({"network": module})
    nn.init.zeros_(module.weight)
    for _ in range(steps):
        ema.update({"network": module})
    return float(ema.averaged()["network"].weight)


@pytest.mark.parametrize("steps", [10, 100, 1000])
def test_half_of_a_power_ema_comes_from_the_last_share_of_the_run(steps):
    assert initial_share(PowerEMA(0.1), steps) < 1e-4
    module, ema = nn.Linear(1, 1, bias=False), PowerEMA(0.25)
    ema.build({"network": module})
    for step in range(steps):
        nn.init.constant_(module.weight, float(step >= 0.75 * steps))  # 1 in the last quarter
        ema.update({"network": module})
    assert float(ema.averaged()["network"].weight) == pytest.approx(0.55, abs=0.12 if steps == 10 else 0.03)


def test_a_decay_too_long_for_the_run_is_shortened_and_reported():
    ema = EMA(0.9998)
    assert "82%" in ema.fit_to(1000)
    assert initial_share(ema, 1000) == pytest.approx(2**-5, rel=0.01)


@pytest.mark.parametrize("ema", [EMA(0.99), EMA(0.9998, warmup=True), PowerEMA(0.2), EMA(0.9998, start=990)])
def test_other_decays_stay_as_they_are(ema):
    assert ema.fit_to(1000) is None
    assert initial_share(ema, 1000) < 0.5 or ema.start
