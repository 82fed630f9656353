"""Learning-rate schedules, and torch's optimizers as the settings create them."""

import math

import pytest
import torch
from torch import nn

from rcg_lightning.errors import UserError
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.stages.optimization import SGD, AdamW, ConstantLR, CosineLR, ExponentialLR, StableDecayLR
from rcg_lightning.types import Vector


def factors(schedule, steps, total=None):
    return [schedule.factor(step, steps if total is None else total) for step in range(steps)]


def test_constant_rate_after_a_linear_warm_up():
    assert factors(ConstantLR(), 3) == [1, 1, 1]
    assert factors(ConstantLR(4), 6) == [0.25, 0.5, 0.75, 1, 1, 1]
    assert factors(ConstantLR(2), 4, total=-1) == [0.5, 1, 1, 1]  # no set end


def test_cosine_rate():
    cosine = CosineLR(warmup=2)
    expected = [0.5, 1.0, *(0.5 * (1 + math.cos(math.pi * i / 8)) for i in range(8))]
    assert factors(cosine, 10) == pytest.approx(expected)
    assert cosine.factor(10, 10) == pytest.approx(0, abs=1e-12)
    assert cosine.factor(20, 10) == pytest.approx(0, abs=1e-12)
    assert CosineLR(final=0.1).factor(5, 10) == pytest.approx(0.55)
    assert CosineLR(final=0.1).factor(10, 10) == pytest.approx(0.1)
    rate, least, warmup, total = 2.4e-3, 3e-4, 4, 20
    for step in range(warmup, total):  # the official formula, with its min_lr
        expected = least + (rate - least) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
        assert rate * CosineLR(warmup, least / rate).factor(step, total) == pytest.approx(expected)


def test_a_cosine_needs_an_end():
    with pytest.raises(UserError, match="max_steps"):
        CosineLR(warmup=2).factor(3, -1)


@pytest.mark.parametrize("warmup", [40, 41, 2000])
def test_a_warm_up_as_long_as_the_run_takes_a_tenth_of_it(warmup):
    assert factors(CosineLR(warmup), 40) == factors(CosineLR(4), 40)
    assert max(factors(ConstantLR(warmup), 1)) == 1


def test_a_stable_rate_decays_at_the_end_only():
    schedule = StableDecayLR(warmup=0.1, decay=0.2)
    assert factors(schedule, 20)[:3] == [0.5, 1, 1]
    assert schedule.decay_start(20) == 17
    assert factors(schedule, 20)[2:17] == [1] * 15
    assert factors(schedule, 20)[17:] == pytest.approx([0.75, 0.5, 0.25])


@pytest.mark.parametrize("total", [1, 2, 3, 10, 1000, 100_000])
def test_a_stable_rate_fits_a_run_of_any_length(total):
    schedule = StableDecayLR()
    rates = factors(schedule, total)
    assert max(rates) == 1
    assert min(rates) > 0
    assert rates.index(1) <= min(0.05 * total, 1000)
    start = schedule.decay_start(total)
    assert start >= 0.8 * total
    assert all(rate == 1 for rate in rates[rates.index(1) : start])


def test_a_longer_run_continues_the_stable_rate():
    """Up to the decay of the short run, both have the same rate, once the longer warm-up is over."""
    schedule = StableDecayLR(warmup=0.05)
    short, long = (factors(schedule, total) for total in (100, 300))
    start = schedule.decay_start(100)
    assert short[15:start] == long[15:start]
    assert long[start] == 1
    assert schedule.factor(10**7, -1) == 1  # no set end


def network():
    return nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Embedding(4, 2))


def test_every_parameter_decays_unless_vectors_are_excluded():
    module = network()
    optimizer, _ = AdamW(weight_decay=0.1).make([module], 10)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1]
    assert len(optimizer.param_groups[0]["params"]) == 5

    optimizer, _ = AdamW(weight_decay=0.1, decay_vectors=False).make([module], 10)
    decayed, undecayed = optimizer.param_groups
    assert (decayed["weight_decay"], undecayed["weight_decay"]) == (0.1, 0.0)
    assert {id(p) for p in decayed["params"]} == {id(module[0].weight), id(module[2].weight)}
    assert {id(p) for p in undecayed["params"]} == {id(module[0].bias), id(module[1].weight), id(module[1].bias)}


def test_the_learned_null_embedding_of_a_vector_decays_as_the_official_one():
    """It is a matrix of one row, as in the official files, not a vector."""
    conditioner = Conditioner(drop=0.1)
    conditioner.build((Vector(3),), 4)
    decayed, undecayed = AdamW(decay_vectors=False).make([conditioner], 10)[0].param_groups
    projection = conditioner.parts[0]
    assert {id(p) for p in decayed["params"]} == {id(projection.linear.weight), id(projection.fake)}
    assert {id(p) for p in undecayed["params"]} == {id(projection.linear.bias)}


def test_decay_is_decoupled():
    module = nn.Linear(1, 1, bias=False)
    nn.init.ones_(module.weight)
    optimizer, _ = AdamW(lr=0.1, weight_decay=0.5).make([module], 10)
    module.weight.grad = torch.zeros_like(module.weight)
    optimizer.step()
    assert float(module.weight.detach()) == pytest.approx(1 - 0.1 * 0.5)


def test_several_modules_with_equal_names_are_all_trained_and_frozen_ones_are_not():
    first, second, frozen = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)
    for settings in (AdamW(), SGD(), AdamW(decay_vectors=False)):
        optimizer, _ = settings.make([first, second, frozen], 10)
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert trained == {id(p) for module in (first, second) for p in module.parameters()}


@pytest.mark.parametrize(
    "settings", [AdamW(lr=0.5, lr_schedule=CosineLR(warmup=2)), SGD(lr=0.5, lr_schedule=CosineLR(warmup=2))]
)
def test_the_learning_rate_follows_the_schedule(settings):
    optimizer, scheduler = settings.make([network()], 6)
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.5 * factor for factor in factors(CosineLR(warmup=2), 6)])


def test_settings_reach_torch():
    optimizer, _ = AdamW(lr=0.3, betas=(0.5, 0.6), eps=1e-3).make([network()], 10)
    group = optimizer.param_groups[0]
    assert (group["betas"], group["eps"], group["lr"]) == ((0.5, 0.6), 1e-3, 0.3)
    listed, _ = AdamW(betas=[0.5, 0.6]).make([network()], 10)  # as read from a checkpoint
    assert listed.param_groups[0]["betas"] == (0.5, 0.6)
    sgd, _ = SGD(momentum=0.7, weight_decay=0.2).make([network()], 10)
    assert (sgd.param_groups[0]["momentum"], sgd.param_groups[0]["weight_decay"]) == (0.7, 0.2)


def test_exponential_rate_falls_to_its_floor():
    assert factors(ExponentialLR(2.0, floor=0.2), 5, total=-1) == [1, 0.5, 0.25, 0.2, 0.2]
    with pytest.raises(UserError, match="at least 1"):
        ExponentialLR(0.9)


def test_momentum_grows_and_resumes():
    weights = nn.Linear(2, 2)
    optimizer, scheduler = SGD(momentum=0.5, final_momentum=0.7, momentum_steps=4).make([weights], 10)
    momenta = []
    for _ in range(6):
        momenta.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        scheduler.step()
    assert momenta == pytest.approx([0.5, 0.55, 0.6, 0.65, 0.7, 0.7])
    state = scheduler.state_dict()
    assert not [name for name, value in state.items() if callable(value)]  # or a checkpoint could not be read
    optimizer, scheduler = SGD(momentum=0.5, final_momentum=0.7, momentum_steps=4).make([weights], 10)
    scheduler.load_state_dict(state)
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["momentum"] == pytest.approx(0.7)


def test_weights_into_a_unit_are_clipped_to_the_largest_norm():
    layer = nn.Linear(2, 2)
    layer.weight.data = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    optimizer, _ = SGD(lr=0.0, max_norm=1.0).make([layer], 1)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    torch.testing.assert_close(layer.weight.data, torch.tensor([[0.6, 0.8], [0.3, 0.4]]))
