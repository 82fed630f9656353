"""Samplers on Gaussian data, whose exact denoiser is known, and the levels that they visit."""

from itertools import pairwise

import pytest
import torch

from rcg_lightning.config import construct, describe
from rcg_lightning.core.counter_rng import SeededNoise
from rcg_lightning.core.diffusion import Posterior
from rcg_lightning.core.samplers import (
    DDIM,
    Ancestral,
    DiffusionSampler,
    LeadingSpacing,
    LinspaceSpacing,
    OffsetSpacing,
)
from rcg_lightning.core.schedule import CosineSchedule, LinearSchedule, ScaledLinearSchedule
from rcg_lightning.errors import UserError

MEAN = torch.tensor([0.0, 1.5, -0.7, 0.2])
DEVIATION = torch.tensor([1.0, 0.3, 0.8, 2.0])


def exact(schedule, learned_mix=None):
    """E[z | x] for z ~ N(MEAN, diag DEVIATION²), x = signal·z + sigma·ε."""

    def denoise(x, k, progress):
        assert 0 <= progress <= 1
        bar = schedule.alpha_bar(k)
        gain = bar**0.5 * DEVIATION**2 / (bar * DEVIATION**2 + 1 - bar)
        mix = None if learned_mix is None else torch.full_like(x, learned_mix)
        return Posterior(MEAN + gain * (x - bar**0.5 * MEAN), mix)

    return denoise


@pytest.mark.parametrize(
    ("sampler", "schedule"),
    [
        (DDIM(200, eta=0), LinearSchedule()),
        (DDIM(250, eta=0, spacing=OffsetSpacing()), ScaledLinearSchedule()),
        (DDIM(500, eta=1, spacing=OffsetSpacing()), ScaledLinearSchedule()),
        (DDIM(500, eta=1, spacing=LinspaceSpacing()), LinearSchedule()),
        (DDIM(250, eta=0.5), CosineSchedule()),
        (Ancestral(1000), LinearSchedule()),
        (Ancestral(500, spacing=LeadingSpacing()), LinearSchedule()),
    ],
    ids=lambda v: f"{type(v).__name__}{v.steps}_{getattr(v, 'eta', '')}",
)
def test_samples_have_the_moments_of_the_data(sampler, schedule):
    noise = SeededNoise(torch.arange(6000))
    samples = sampler.run(exact(schedule), schedule, noise, (4,))
    end = schedule.alpha_bar(
        sampler.spacing.timesteps(sampler.steps, schedule.steps)[-1]
    )  # 1 unless it stops at level 0
    deviation = (end * DEVIATION**2 + 1 - end).sqrt()
    torch.testing.assert_close(samples.mean(0), end**0.5 * MEAN, rtol=0, atol=0.07)
    torch.testing.assert_close(samples.std(0), deviation, rtol=0.045, atol=0)
    correlations = torch.corrcoef(samples.T) - torch.eye(4)
    assert float(correlations.abs().max()) < 0.06


def test_one_step_is_exact_for_a_point():
    """If the data is one point, one step of any length ends there."""
    point = torch.tensor([0.3, -0.4])
    for sampler in (DDIM(1), DDIM(1, eta=1), DDIM(7, eta=1), Ancestral(2)):
        samples = sampler.run(lambda x, k, p: Posterior(point.expand_as(x)), LinearSchedule(), seeds(5), (2,))
        torch.testing.assert_close(samples, point.expand(5, 2))


def seeds(count):
    return SeededNoise(torch.arange(count))


@pytest.mark.parametrize("spacing", [LinspaceSpacing(), LeadingSpacing()], ids=["linspace", "leading"])
def test_ddim_with_eta_1_is_ancestral_sampling(spacing):
    schedule = LinearSchedule()
    runs = [
        list(sampler.trajectory(exact(schedule), schedule, seeds(8), (4,)))
        for sampler in (DDIM(20, eta=1, spacing=spacing), Ancestral(20, spacing=spacing))
    ]
    for (x, mean), (other, other_mean) in zip(*runs, strict=True):
        torch.testing.assert_close(x, other, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(mean, other_mean, rtol=1e-4, atol=1e-4)


def test_a_learned_variance_widens_the_step():
    schedule, x = LinearSchedule(), torch.zeros(1, 4)
    sampler = Ancestral(250)
    levels = LinspaceSpacing().timesteps(250, 1000)
    k, s = levels[100], levels[101]

    def jump(mix):
        posterior = exact(schedule, mix)(x, k, 0.5)
        still = sampler.step(x, posterior, k, s, schedule, lambda: torch.zeros_like(x))
        return (sampler.step(x, posterior, k, s, schedule, lambda: torch.ones_like(x)) - still)[0, 0]

    beta = 1 - schedule.alpha_bar(k) / schedule.alpha_bar(s)
    small = beta * (1 - schedule.alpha_bar(s)) / (1 - schedule.alpha_bar(k))
    assert float(jump(None)) == pytest.approx(small**0.5, rel=1e-5)
    assert float(jump(0.0)) == pytest.approx(small**0.5, rel=1e-5)
    assert float(jump(1.0)) == pytest.approx(beta**0.5, rel=1e-5)
    assert float(jump(0.5)) == pytest.approx((beta * small) ** 0.25, rel=1e-5)


class Counting(SeededNoise):
    def __init__(self, seeds):
        super().__init__(seeds)
        self.steps = []

    def normal(self, step, *shape):
        self.steps.append(step)
        return super().normal(step, *shape)


@pytest.mark.parametrize(
    ("sampler", "drawn"),
    [
        (DDIM(10, eta=0), [0]),
        (DDIM(10, eta=1), list(range(10))),  # none in the step to clean
        (DDIM(10, eta=1, spacing=OffsetSpacing()), list(range(11))),  # noise in the last step as well, as officially
        (Ancestral(10), list(range(10))),
    ],
)
def test_step_i_draws_number_i_plus_1(sampler, drawn):
    schedule, noise = ScaledLinearSchedule(), Counting(torch.arange(3))
    steps = list(sampler.trajectory(exact(schedule), schedule, noise, (4,)))
    assert len(steps) == 10
    assert noise.steps == drawn


def test_estimates_are_clipped_where_asked_for():
    def denoise(x, k, progress):
        return Posterior(torch.full_like(x, 3.0), torch.zeros_like(x))

    for sampler in (DDIM(5, clip=1.0), Ancestral(5, clip=1.0)):
        steps = list(sampler.trajectory(denoise, LinearSchedule(), seeds(2), (4,)))
        assert all(float(mean.max()) == 1 for _, mean in steps)
        torch.testing.assert_close(steps[-1][0], torch.ones(2, 4))
    free = DDIM(5).run(denoise, LinearSchedule(), seeds(2), (4,))
    torch.testing.assert_close(free, torch.full((2, 4), 3.0))


def test_offset_grid_of_the_official_rdm():
    levels = OffsetSpacing().timesteps(250, 1000)
    assert levels[:2] == [997, 993]
    assert levels[-3:] == [5, 1, 0]
    assert len(levels) == 251  # levels visited, and the end
    assert len(OffsetSpacing().timesteps(30, 1000)) == 1 + 31  # 30 does not divide 1000
    with pytest.raises(UserError, match="run out of the schedule"):
        OffsetSpacing().timesteps(1000, 1000)


def test_stride_grid_is_ddim25():
    levels = LeadingSpacing().timesteps(25, 1000)
    assert levels == [*range(960, -1, -40), -1]


def test_even_grid_is_250():
    levels = LinspaceSpacing().timesteps(250, 1000)
    assert levels[0] == 999
    assert levels[-2:] == [0, -1]
    assert len(set(levels)) == 251
    gaps = {a - b for a, b in pairwise(levels[:-1])}
    assert gaps == {4, 5}
    assert LinspaceSpacing().timesteps(1000, 1000) == list(range(999, -2, -1))


@pytest.mark.parametrize(
    "spacing", [LeadingSpacing(), OffsetSpacing(), LinspaceSpacing()], ids=lambda g: type(g).__name__
)
def test_spacings_descend_and_reject_nonsense(spacing):
    for steps in (2, 10, 25, 30, 250):
        levels = spacing.timesteps(steps, 1000)
        assert all(a > b for a, b in pairwise(levels))
        assert levels[0] < 1000
    for steps in (0, -1, 1001):
        with pytest.raises(UserError, match="steps"):
            spacing.timesteps(steps, 1000)


def test_progress_goes_from_0_to_1():
    told = []

    def denoise(x, k, progress):
        told.append(progress)
        return Posterior(x)

    DDIM(5).run(denoise, LinearSchedule(), seeds(1), (2,))
    assert told == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    told.clear()
    DDIM(1).run(denoise, LinearSchedule(), seeds(1), (2,))
    assert told == [0]


def test_a_sampler_is_one_step_rule():
    class Last(DiffusionSampler):
        def step(self, x, posterior, k, s, schedule, noise):
            return posterior.mean

    samples = Last(4, LeadingSpacing(), None).run(lambda x, k, p: Posterior(x + 1), LinearSchedule(), seeds(4), (2,))
    torch.testing.assert_close(samples, seeds(4).normal(0, 2) + 4)


@pytest.mark.parametrize("make", [lambda t: DDIM(250, temperature=t), lambda t: Ancestral(250, temperature=t)])
def test_temperature_scales_the_deviation_of_gaussian_samples(make):
    """With an exact denoiser samples are affine in the noise: x(T) = x(0) + T (x(1) - x(0))."""
    schedule = LinearSchedule()
    cold, usual, hot = (
        make(t).run(exact(schedule), schedule, SeededNoise(torch.arange(3000)), (4,)) for t in (0.0, 1.0, 1.7)
    )
    torch.testing.assert_close(hot, cold + 1.7 * (usual - cold), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(cold, MEAN.expand_as(cold), rtol=0, atol=0.02)  # no noise: the mean of the data
    torch.testing.assert_close(hot.std(0), 1.7 * DEVIATION, rtol=0.06, atol=0)


def test_temperature_is_checked_and_described_where_it_is_given():
    with pytest.raises(UserError, match="temperature"):
        DDIM(4, temperature=-1)
    assert "temperature" not in describe(DDIM(4))["init_args"]  # what a checkpoint says of its sampler stays the same
    assert construct(describe(DDIM(4, temperature=0.5))).temperature == 0.5
