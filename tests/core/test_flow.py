"""The straight path of flow matching in the terms of diffusion, and the timesteps and weights of training."""

import math

import pytest
import torch

from rcg_lightning.core.diffusion import (
    Clean,
    FlowVelocity,
    MinSNR,
    Noise,
    Posterior,
    Transition,
    Velocity,
    add_noise,
    added_variance,
    bridge_variance,
    expand,
    transition_table,
    variational_bound,
)
from rcg_lightning.core.schedule import CosineSchedule, FlowSchedule, LinearSchedule, LogitNormal
from rcg_lightning.errors import UserError

FLOW = FlowSchedule(100)


def test_timesteps_of_a_flow_are_times():
    t = torch.tensor([-1, 0, 24, 99])
    signal, sigma = FLOW.scales(t)
    torch.testing.assert_close(sigma, torch.tensor([0.0, 0.01, 0.25, 1.0]))
    torch.testing.assert_close(signal, 1 - sigma)
    assert [FLOW.at(int(timestep)) for timestep in t] == [
        pytest.approx(pair) for pair in zip(signal.tolist(), sigma.tolist(), strict=True)
    ]
    time = torch.tensor([0.0, 0.123456, 0.5, 1.0])  # any time has a timestep
    torch.testing.assert_close(FLOW.scales(FLOW.timesteps(time))[1], time)
    assert signal.dtype == sigma.dtype == FLOW.timesteps(time).dtype == torch.float32


def test_timesteps_of_diffusion_are_integers():
    u = torch.tensor([0.0, 0.0099, 0.01, 0.5, 0.9999, 1.0])
    timesteps = LinearSchedule(100).timesteps(u)
    assert timesteps.dtype == torch.int64
    assert timesteps.tolist() == [0, 0, 1, 50, 99, 99]


@pytest.mark.parametrize("schedule", [FLOW, LinearSchedule(100)], ids=["flow", "diffusion"])
@pytest.mark.parametrize("prediction", [Clean(), Noise(), Velocity(), FlowVelocity()], ids=lambda p: type(p).__name__)
def test_every_prediction_works_on_every_path(prediction, schedule):
    torch.manual_seed(0)
    z, noise = torch.randn(2, 4, 3)
    t = torch.tensor([0, 10, 50, 98])
    x = add_noise(z, t, noise, schedule)
    signal, sigma = (expand(scale, z) for scale in schedule.scales(t))
    output = prediction.target(z, noise, signal, sigma)
    torch.testing.assert_close(prediction.mean(output, x, signal, sigma), z, rtol=1e-3, atol=1e-3)


def test_the_velocity_is_the_slope_of_the_path():
    torch.manual_seed(0)
    z, noise = torch.randn(2, 1, 5, dtype=torch.float64)
    ends = [(1 - time) * z + time * noise for time in (0.3, 0.3 + 1e-6)]
    velocity = FlowVelocity().target(z, noise, torch.tensor(0.7), torch.tensor(0.3))
    torch.testing.assert_close((ends[1] - ends[0]) / 1e-6, velocity, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("schedule", [FLOW, LinearSchedule(100)], ids=["flow", "diffusion"])
@pytest.mark.parametrize(("t", "t_next"), [(99, 98), (80, 30), (3, 2)])
def test_a_transition_is_bayes_rule_on_every_path(schedule, t, t_next):
    """x_t = r x_t_next + added noise, x_t_next = a z + σ n: a product of Gaussians, whose precisions add."""
    (signal, sigma), (signal_next, sigma_next) = schedule.at(t), schedule.at(t_next)
    ratio, added = signal / signal_next, added_variance(schedule, t, t_next)
    assert ratio**2 * sigma_next**2 + added == pytest.approx(sigma**2, rel=1e-9)
    precision = ratio**2 / added + 1 / sigma_next**2
    step = Transition.between(schedule, t, t_next)
    assert bridge_variance(schedule, t, t_next) == pytest.approx(1 / precision, rel=1e-9)
    assert step.from_noisy == pytest.approx(ratio / added / precision, rel=1e-9)
    assert step.from_clean == pytest.approx(signal_next / sigma_next**2 / precision, rel=1e-9)
    assert math.exp(step.log_large) == pytest.approx(added, rel=1e-9)


def test_the_bound_is_zero_for_a_perfect_denoiser_of_a_flow():
    torch.manual_seed(0)
    z, noise, t = torch.rand(4, 3), torch.randn(4, 3), torch.tensor([1, 20, 70, 99])
    x = add_noise(z, t, noise, FLOW)
    bound = variational_bound(z, x, t, Posterior(z, torch.zeros_like(z)), transition_table(FLOW))
    torch.testing.assert_close(bound, torch.zeros(4), rtol=0, atol=1e-5)


@pytest.mark.parametrize("prediction", [Clean(), Noise(), Velocity(), FlowVelocity()], ids=lambda p: type(p).__name__)
def test_min_snr_weighs_the_error_of_the_clean_example(prediction):
    """For any prediction, weight times squared error of the output is min(SNR, gamma) times that of x̂₀."""
    schedule = CosineSchedule(100)
    t = torch.tensor([0, 5, 40, 90])
    signal, sigma = schedule.scales(t)
    x, output, other = torch.randn(3, 4)
    means = [prediction.mean(value, x, signal, sigma) for value in (output, other)]
    weight = MinSNR(5.0)(prediction, signal, sigma)
    expected = (signal / sigma).square().clamp(max=5.0) * (means[0] - means[1]).square()
    torch.testing.assert_close(weight * (output - other).square(), expected, rtol=1e-3, atol=1e-6)


def test_min_snr_has_its_published_forms():
    signal, sigma = CosineSchedule(100).scales(torch.arange(100))
    snr = (signal / sigma).square()
    bounded = snr.clamp(max=5.0)
    torch.testing.assert_close(MinSNR()(Clean(), signal, sigma), bounded)
    torch.testing.assert_close(MinSNR()(Noise(), signal, sigma), bounded / snr, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(MinSNR()(Velocity(), signal, sigma), bounded / (snr + 1), rtol=1e-4, atol=1e-6)
    with pytest.raises(UserError, match="gamma should be above 0"):
        MinSNR(0)


def test_logit_normal_has_the_given_mean_and_deviation():
    distribution = LogitNormal(0.5, 0.8)
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    logits = torch.logit(distribution(u))
    assert float(logits.mean()) == pytest.approx(0.5, abs=1e-3)
    assert float(logits.std()) == pytest.approx(0.8, abs=1e-3)
    assert distribution(torch.tensor([0.0, 1.0])).tolist() == [0.0, 1.0]
    with pytest.raises(UserError, match="deviation"):
        LogitNormal(0.0, 0.0)
