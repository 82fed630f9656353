"""The straight path of flow matching in the same terms as diffusion, and what training does with levels and weights."""

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


def test_levels_of_a_flow_are_times():
    k = torch.tensor([-1, 0, 24, 99])
    signal, noise = FLOW.scales(k)
    torch.testing.assert_close(noise, torch.tensor([0.0, 0.01, 0.25, 1.0]))
    torch.testing.assert_close(signal, 1 - noise)
    assert [FLOW.at(int(level)) for level in k] == [
        pytest.approx(pair) for pair in zip(signal.tolist(), noise.tolist(), strict=True)
    ]
    t = torch.tensor([0.0, 0.123456, 0.5, 1.0])  # any time is a level
    torch.testing.assert_close(FLOW.scales(FLOW.timesteps(t))[1], t)
    assert signal.dtype == noise.dtype == FLOW.timesteps(t).dtype == torch.float32


def test_levels_of_diffusion_are_whole():
    u = torch.tensor([0.0, 0.0099, 0.01, 0.5, 0.9999, 1.0])
    levels = LinearSchedule(100).timesteps(u)
    assert levels.dtype == torch.int64
    assert levels.tolist() == [0, 0, 1, 50, 99, 99]


@pytest.mark.parametrize("schedule", [FLOW, LinearSchedule(100)], ids=["flow", "diffusion"])
@pytest.mark.parametrize("prediction", [Clean(), Noise(), Velocity(), FlowVelocity()], ids=lambda p: type(p).__name__)
def test_every_prediction_on_every_path(prediction, schedule):
    torch.manual_seed(0)
    z, noise = torch.randn(2, 4, 3)
    k = torch.tensor([0, 10, 50, 98])
    x = add_noise(z, k, noise, schedule)
    signal, sigma = (expand(scale, z) for scale in schedule.scales(k))
    output = prediction.target(z, noise, signal, sigma)
    torch.testing.assert_close(prediction.mean(output, x, signal, sigma), z, rtol=1e-3, atol=1e-3)


def test_the_velocity_is_the_slope_of_the_path():
    torch.manual_seed(0)
    z, noise = torch.randn(2, 1, 5, dtype=torch.float64)
    ends = [(1 - t) * z + t * noise for t in (0.3, 0.3 + 1e-6)]
    velocity = FlowVelocity().target(z, noise, torch.tensor(0.7), torch.tensor(0.3))
    torch.testing.assert_close((ends[1] - ends[0]) / 1e-6, velocity, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("schedule", [FLOW, LinearSchedule(100)], ids=["flow", "diffusion"])
@pytest.mark.parametrize(("k", "s"), [(99, 98), (80, 30), (3, 2)])
def test_a_transition_is_bayes_rule_on_every_path(schedule, k, s):
    """x_k = r x_s + added noise, x_s = a z + σ n: a Gaussian product, whose precisions add."""
    (signal_k, sigma_k), (signal_s, sigma_s) = schedule.at(k), schedule.at(s)
    ratio, added = signal_k / signal_s, added_variance(schedule, k, s)
    assert ratio**2 * sigma_s**2 + added == pytest.approx(sigma_k**2, rel=1e-9)
    precision = ratio**2 / added + 1 / sigma_s**2
    step = Transition.between(schedule, k, s)
    assert bridge_variance(schedule, k, s) == pytest.approx(1 / precision, rel=1e-9)
    assert step.from_noisy == pytest.approx(ratio / added / precision, rel=1e-9)
    assert step.from_clean == pytest.approx(signal_s / sigma_s**2 / precision, rel=1e-9)
    assert math.exp(step.log_large) == pytest.approx(added, rel=1e-9)


def test_the_bound_vanishes_for_a_perfect_denoiser_of_a_flow():
    torch.manual_seed(0)
    z, noise, k = torch.rand(4, 3), torch.randn(4, 3), torch.tensor([1, 20, 70, 99])
    x = add_noise(z, k, noise, FLOW)
    bound = variational_bound(z, x, k, Posterior(z, torch.zeros_like(z)), transition_table(FLOW))
    torch.testing.assert_close(bound, torch.zeros(4), rtol=0, atol=1e-5)


@pytest.mark.parametrize("prediction", [Clean(), Noise(), Velocity(), FlowVelocity()], ids=lambda p: type(p).__name__)
def test_min_snr_weighs_the_error_of_the_clean_example(prediction):
    """Whatever is predicted: weight times squared error of the output is min(SNR, gamma) times that of x̂₀."""
    schedule = CosineSchedule(100)
    k = torch.tensor([0, 5, 40, 90])
    signal, sigma = schedule.scales(k)
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
    with pytest.raises(UserError, match="positive"):
        MinSNR(0)


def test_logit_normal_levels():
    law = LogitNormal(0.5, 0.8)
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    logits = torch.logit(law(u))
    assert float(logits.mean()) == pytest.approx(0.5, abs=1e-3)
    assert float(logits.std()) == pytest.approx(0.8, abs=1e-3)
    ends = law(torch.tensor([0.0, 1.0]))
    assert ends.tolist() == [0.0, 1.0]
    with pytest.raises(UserError, match="deviation"):
        LogitNormal(0.0, 0.0)
