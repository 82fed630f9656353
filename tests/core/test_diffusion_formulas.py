import math

import pytest
import torch

from rcg_lightning.core.diffusion import (
    Clean,
    Noise,
    Posterior,
    Transition,
    Velocity,
    add_noise,
    expand,
    transition_table,
    variational_bound,
)
from rcg_lightning.core.schedule import CosineSchedule, LinearSchedule

SCHEDULE = LinearSchedule()


@pytest.fixture
def example():
    torch.manual_seed(0)
    z, noise = torch.randn(2, 6, 3, 4, 4)
    return z, noise, torch.tensor([0, 1, 250, 500, 750, 999])


@pytest.mark.parametrize("prediction", [Clean(), Noise(), Velocity()], ids=lambda p: type(p).__name__)
def test_a_perfect_output_gives_the_clean_example(prediction, example):
    z, noise, t = example
    x = add_noise(z, t, noise, CosineSchedule(2000))
    signal, sigma = (expand(scale, z) for scale in CosineSchedule(2000).scales(t))
    target = prediction.target(z, noise, signal, sigma)
    torch.testing.assert_close(prediction.mean(target, x, signal, sigma), z, rtol=1e-4, atol=1e-4)


def test_noising_has_the_stated_moments():
    torch.manual_seed(0)
    t = torch.full((20_000,), 300)
    z, noise = 2.0 * torch.ones(20_000, 1), torch.randn(20_000, 1)
    x = add_noise(z, t, noise, SCHEDULE)
    bar = SCHEDULE.alpha_bar(300)
    assert float(x.mean()) == pytest.approx(2 * math.sqrt(bar), abs=0.02)
    assert float(x.std()) == pytest.approx(math.sqrt(1 - bar), rel=0.02)
    assert torch.equal(add_noise(z, torch.full_like(t, -1), noise, SCHEDULE), z)


@pytest.mark.parametrize(("t", "t_next"), [(999, 998), (999, 500), (40, 0), (3, 2)])
def test_a_transition_is_bayes_rule(t, t_next):
    """q(x_t_next | x_t, z) ∝ q(x_t | x_t_next) q(x_t_next | z), all Gaussian: precisions add."""
    step = Transition.between(SCHEDULE, t, t_next)
    bar, bar_next = SCHEDULE.alpha_bar(t), SCHEDULE.alpha_bar(t_next)
    alpha = bar / bar_next
    precision = alpha / (1 - alpha) + 1 / (1 - bar_next)
    assert math.exp(step.log_small) == pytest.approx(1 / precision, rel=1e-9)
    assert step.from_noisy == pytest.approx(math.sqrt(alpha) / (1 - alpha) / precision, rel=1e-9)
    assert step.from_clean == pytest.approx(math.sqrt(bar_next) / (1 - bar_next) / precision, rel=1e-9)
    assert math.exp(step.log_large) == pytest.approx(1 - alpha, rel=1e-9)
    assert step.log_variance(None) == step.log_small


def test_the_step_to_clean_has_the_estimate_as_mean_and_the_variance_of_the_step_before():
    step = Transition.between(SCHEDULE, 0, -1)
    assert step.from_clean == pytest.approx(1)
    assert step.from_noisy == 0
    assert step.log_small == Transition.between(SCHEDULE, 1, 0).log_small
    assert step.log_variance(torch.tensor(0.25)) == pytest.approx(0.25 * step.log_large + 0.75 * step.log_small)


def test_the_bound_is_zero_for_a_perfect_denoiser_and_is_in_bits(example):
    z, noise, t = example
    z = z.clamp(-0.9, 0.9)
    table = transition_table(SCHEDULE)
    assert table.shape == (1000, 4)
    x = add_noise(z, t, noise, SCHEDULE)
    perfect = variational_bound(z, x, t, Posterior(z, torch.zeros_like(z)), table)
    torch.testing.assert_close(perfect[1:], torch.zeros(5), rtol=0, atol=1e-5)

    # an error of one standard deviation in the mean costs 1/2 nat in every dimension
    deviation = (0.5 * table[t, 2]).exp() / table[t, 0]
    wrong = variational_bound(z, x, t, Posterior(z + expand(deviation, z), torch.zeros_like(z)), table)
    torch.testing.assert_close(wrong[1:], torch.full((5,), 0.5 / math.log(2)), rtol=1e-3, atol=1e-4)


def test_the_likelihood_at_timestep_zero_is_that_of_an_8_bit_bin():
    z = torch.linspace(-1, 1, 256).view(1, -1)
    table = transition_table(SCHEDULE)
    t = torch.zeros(1, dtype=torch.long)
    mean = z + 0.003
    bits = variational_bound(z, z, t, Posterior(mean, torch.full_like(z, 0.5)), table)
    deviation = math.exp(0.5 * float(table[0, 2:].mean()))
    normal = torch.distributions.Normal(mean.double(), deviation)
    mass = normal.cdf(z.double() + 1 / 255) - normal.cdf(z.double() - 1 / 255)
    mass[0, 0], mass[0, -1] = normal.cdf(z.double() + 1 / 255)[0, 0], 1 - normal.cdf(z.double() - 1 / 255)[0, -1]
    exact = -mass.clamp(min=1e-12).log().mean() / math.log(2)
    assert float(bits) == pytest.approx(float(exact), rel=0.05)  # the tanh approximation


def test_the_bound_trains_the_variance_only(example):
    z, noise, t = example
    mean, mix = z.clone().requires_grad_(), torch.full_like(z, 0.3).requires_grad_()
    x = add_noise(z, t, noise, SCHEDULE)
    variational_bound(z, x, t, Posterior(mean, mix), transition_table(SCHEDULE)).sum().backward()
    assert mean.grad is None
    assert mix.grad is not None
    assert bool((mix.grad != 0).any())
