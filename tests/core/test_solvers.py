"""Euler, Heun and DPM-Solver++ on data whose denoiser and flow are known: their order, and what they draw and visit."""

import math
from itertools import pairwise

import pytest
import torch

from rcg_lightning.core.counter_rng import SeededNoise
from rcg_lightning.core.diffusion import Posterior
from rcg_lightning.core.samplers import (
    DDIM,
    Ancestral,
    DPMSolver2M,
    Euler,
    Heun,
    LinspaceSpacing,
    OffsetSpacing,
    TrailingSpacing,
)
from rcg_lightning.core.schedule import CosineSchedule, FlowSchedule, LinearSchedule
from rcg_lightning.errors import UserError

MEAN = torch.tensor([0.0, 1.5, -0.7, 0.2], dtype=torch.float64)
DEVIATION = torch.tensor([1.0, 0.3, 0.8, 2.0], dtype=torch.float64)
SCHEDULES = {"flow": FlowSchedule(), "linear": LinearSchedule(), "cosine": CosineSchedule()}
paths = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


class Precise(SeededNoise):
    """Draws in double precision, and counts."""

    def __init__(self, seeds):
        super().__init__(seeds)
        self.steps = []

    def normal(self, step, *shape):
        self.steps.append(step)
        return super().normal(step, *shape).double()


def exact(schedule, told=None):
    """E[z | x] for z ~ N(MEAN, diag DEVIATION²)."""

    def denoise(x, k, progress):
        if told is not None:
            told.append((k, progress))
        signal, sigma = schedule.at(k)
        gain = signal * DEVIATION**2 / (signal**2 * DEVIATION**2 + sigma**2)
        return Posterior(MEAN + gain * (x - signal * MEAN))

    return denoise


def error(sampler, schedule):
    """Mean distance from where the exact flow ends: Gaussians keep their quantile."""
    noise = Precise(torch.arange(200))
    signal, sigma = schedule.at(sampler.spacing.timesteps(sampler.steps, schedule.steps)[0])
    widths = (signal**2 * DEVIATION**2 + sigma**2).sqrt()
    ends = MEAN + DEVIATION / widths * (noise.normal(0, 4) - signal * MEAN)
    return float((sampler.run(exact(schedule), schedule, noise, (4,)) - ends).abs().mean())


@paths
@pytest.mark.parametrize(
    ("kind", "order"), [(Euler, 1), (Heun, 2), (DPMSolver2M, 2)], ids=lambda v: getattr(v, "__name__", v)
)
def test_the_error_falls_by_the_order(kind, order, schedule):
    errors = [error(kind(steps), schedule) for steps in (10, 20, 40)]
    slopes = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert all(slope > 0.8 if order == 1 else slope > 1.4 for slope in slopes)
    assert sum(slopes) / 2 == pytest.approx(order, abs=0.5)


@paths
@pytest.mark.parametrize("steps", [10, 20])
def test_second_order_beats_ddim_at_as_many_evaluations(schedule, steps):
    first = error(DDIM(steps, spacing=TrailingSpacing()), schedule)
    assert error(DPMSolver2M(steps), schedule) < 0.5 * first
    assert error(Heun(steps // 2, LinspaceSpacing()), schedule) < 0.7 * first


def test_on_a_flow_eulers_step_goes_along_the_velocity():
    schedule, x = FlowSchedule(), torch.randn(3, 4, dtype=torch.float64)
    k, s = 699, 499  # t = 0.7 and 0.5
    posterior = exact(schedule)(x, k, 0.0)
    velocity = (x - 0.3 * posterior.mean) / 0.7 - posterior.mean  # noise - z
    moved = Euler().step(x, posterior, k, s, schedule, lambda: None)
    torch.testing.assert_close(moved, x - 0.2 * velocity)

    # Heun from t = 1 in steps of 0.2: the mean of the velocities at both ends
    states = [x for x, _ in Heun(5).trajectory(exact(schedule), schedule, Precise(torch.arange(3)), (4,))]
    before = states[0]  # t = 0.8
    first = velocity_at(before, 799, schedule)
    predicted = before - 0.2 * first
    torch.testing.assert_close(states[1], before - 0.1 * (first + velocity_at(predicted, 599, schedule)))


def velocity_at(x, k, schedule):
    mean, t = exact(schedule)(x, k, 0.0).mean, (k + 1) / schedule.steps
    return (x - (1 - t) * mean) / t - mean


@paths
def test_euler_is_ddim_without_noise(schedule):
    one, other = (
        sampler.run(exact(schedule), schedule, Precise(torch.arange(5)), (4,))
        for sampler in (Euler(7), DDIM(7, spacing=TrailingSpacing()))
    )
    assert torch.equal(one, other)


def test_dpm_solver_follows_its_paper():
    """Lu et al. 2022, algorithm 2, in their own terms: λ, h, r and D."""
    schedule, noise = CosineSchedule(), Precise(torch.arange(6))
    levels = TrailingSpacing().timesteps(5, schedule.steps)
    states = [x for x, _ in DPMSolver2M(5).trajectory(exact(schedule), schedule, noise, (4,))]
    alpha, sigma = zip(*(schedule.at(k) for k in levels), strict=True)
    lam = [math.log(a / s) for a, s in zip(alpha[:-1], sigma[:-1], strict=True)]
    x, means = noise.normal(0, 4), []
    for i in range(1, 6):
        means.append(exact(schedule)(x, levels[i - 1], 0.0).mean)
        if i == 5:
            x = means[-1]  # first order to clean: σ = 0
        else:
            h, estimate = lam[i] - lam[i - 1], means[-1]
            if i > 1:
                r = (lam[i - 1] - lam[i - 2]) / h
                estimate = (1 + 1 / (2 * r)) * means[-1] - 1 / (2 * r) * means[-2]
            x = sigma[i] / sigma[i - 1] * x - alpha[i] * math.expm1(-h) * estimate
        torch.testing.assert_close(states[i - 1], x)


@paths
@pytest.mark.parametrize(("kind", "count"), [(Euler, 6), (DPMSolver2M, 6), (Heun, 11)])
def test_evaluations_levels_and_progress(kind, count, schedule):
    told, noise = [], Precise(torch.arange(3))
    steps = list(kind(6).trajectory(exact(schedule, told), schedule, noise, (4,)))
    assert len(steps) == 6
    assert noise.steps == [0]  # no noise but the start
    assert len(told) == count
    levels = TrailingSpacing().timesteps(6, schedule.steps)
    assert all(progress == pytest.approx(levels.index(k) / 5) for k, progress in told)  # a level has its progress
    assert [k for k, _ in told] == sorted((k for k, _ in told), reverse=True)


@pytest.mark.parametrize("sampler", [Euler(1), Heun(1), DPMSolver2M(1), Heun(4), DPMSolver2M(4)], ids=repr)
def test_data_that_is_one_point_is_hit_by_any_number_of_steps(sampler):
    point = torch.tensor([0.3, -0.4], dtype=torch.float64)
    for schedule in SCHEDULES.values():
        samples = sampler.run(lambda x, k, p: Posterior(point.expand_as(x)), schedule, Precise(torch.arange(5)), (2,))
        torch.testing.assert_close(samples, point.expand(5, 2))


@paths
@pytest.mark.parametrize("kind", [Euler, Heun, DPMSolver2M])
def test_temperature_scales_the_start(kind, schedule):
    """An exact denoiser of Gaussian data is affine, and so is all sampling: x(T) = x(0) + T (x(1) - x(0))."""
    cold, usual, hot = (
        kind(12, temperature=t).run(exact(schedule), schedule, Precise(torch.arange(20)), (4,)) for t in (0.0, 1.0, 1.7)
    )
    torch.testing.assert_close(hot, cold + 1.7 * (usual - cold))


@pytest.mark.parametrize("kind", [Heun, DPMSolver2M])
def test_estimates_are_clipped(kind):
    def denoise(x, k, progress):
        return Posterior(torch.full_like(x, 3.0))

    steps = list(kind(5, clip=1.0).trajectory(denoise, CosineSchedule(), Precise(torch.arange(2)), (4,)))
    assert all(float(mean.max()) == 1 for _, mean in steps)
    torch.testing.assert_close(steps[-1][0], torch.ones(2, 4, dtype=torch.float64))


@pytest.mark.parametrize(
    "sampler",
    [Heun(30), DPMSolver2M(60), DDIM(300, 1.0, TrailingSpacing()), Ancestral(300, TrailingSpacing())],
    ids=lambda s: type(s).__name__,
)
def test_a_mixture_is_sampled_along_a_flow(sampler):
    """Two narrow modes at -1 and 2 with weights .3 and .7: with noise in the steps, and without."""
    schedule, modes, weights, width = FlowSchedule(), torch.tensor([-1.0, 2.0]), torch.tensor([0.3, 0.7]), 0.2

    def denoise(x, k, progress):
        signal, sigma = schedule.at(k)
        variance = signal**2 * width**2 + sigma**2
        shares = (weights.log() - (x - signal * modes) ** 2 / (2 * variance)).softmax(1)  # (B, 2)
        means = modes + signal * width**2 / variance * (x - signal * modes)
        return Posterior((shares * means).sum(1, keepdim=True))

    samples = sampler.run(denoise, schedule, SeededNoise(torch.arange(4000)), (1,))[:, 0]
    high = samples > 0.5
    assert float(high.float().mean()) == pytest.approx(0.7, abs=0.025)
    assert float(samples[high].mean()) == pytest.approx(2.0, abs=0.03)
    assert float(samples[~high].std()) == pytest.approx(width, abs=0.03)


def test_a_grid_from_pure_noise_to_clean_in_equal_strides():
    assert TrailingSpacing().timesteps(25, 1000) == [*range(999, 0, -40), -1]
    assert TrailingSpacing().timesteps(1, 1000) == [999, -1]
    assert TrailingSpacing().timesteps(1000, 1000) == list(range(999, -2, -1))
    for steps in (3, 7, 30, 999):
        levels = TrailingSpacing().timesteps(steps, 1000)
        assert len(set(levels)) == steps + 1
    with pytest.raises(UserError, match="1 to 1000 steps"):
        TrailingSpacing().timesteps(0, 1000)


def test_a_solver_may_end_at_level_zero():
    """On a grid that ends before clean, Heun EMA weights in the last step as well and DPM-Solver's is of first order."""
    schedule = LinearSchedule()
    for sampler in (Heun(50, OffsetSpacing()), DPMSolver2M(50, OffsetSpacing())):
        samples = sampler.run(exact(schedule), schedule, Precise(torch.arange(2000)), (4,))
        torch.testing.assert_close(samples.mean(0), MEAN, rtol=0, atol=0.1)
        torch.testing.assert_close(samples.std(0), DEVIATION, rtol=0.1, atol=0)
