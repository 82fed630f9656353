"""Euler, Heun and DPM-Solver++ on data with a known denoiser and flow: their order, noise and timesteps."""

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
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


class RecordedNoise(SeededNoise):
    """Noise in double precision that records its steps."""

    def __init__(self, seeds):
        super().__init__(seeds)
        self.steps = []

    def normal(self, step, *shape):
        self.steps.append(step)
        return super().normal(step, *shape).double()


def exact_denoiser(schedule, calls=None):
    """E[z | x] for z ~ N(MEAN, diag DEVIATION²)."""

    def denoise(x, t, progress):
        if calls is not None:
            calls.append((t, progress))
        signal, sigma = schedule.at(t)
        gain = signal * DEVIATION**2 / (signal**2 * DEVIATION**2 + sigma**2)
        return Posterior(MEAN + gain * (x - signal * MEAN))

    return denoise


def error(sampler, schedule):
    """Mean distance to the end of the exact flow, along which the quantiles of a Gaussian are constant."""
    noise = RecordedNoise(torch.arange(200))
    signal, sigma = schedule.at(sampler.spacing.timesteps(sampler.steps, schedule.steps)[0])
    deviations = (signal**2 * DEVIATION**2 + sigma**2).sqrt()
    ends = MEAN + DEVIATION / deviations * (noise.normal(0, 4) - signal * MEAN)
    return float((sampler.run(exact_denoiser(schedule), schedule, noise, (4,)) - ends).abs().mean())


@every_schedule
@pytest.mark.parametrize(
    ("kind", "order"), [(Euler, 1), (Heun, 2), (DPMSolver2M, 2)], ids=lambda v: getattr(v, "__name__", v)
)
def test_the_error_falls_with_the_order(kind, order, schedule):
    errors = [error(kind(steps), schedule) for steps in (10, 20, 40)]
    slopes = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert all(slope > 0.8 if order == 1 else slope > 1.4 for slope in slopes)
    assert sum(slopes) / 2 == pytest.approx(order, abs=0.5)


@every_schedule
@pytest.mark.parametrize("steps", [10, 20])
def test_second_order_beats_ddim_with_as_many_evaluations(schedule, steps):
    ddim_error = error(DDIM(steps, spacing=TrailingSpacing()), schedule)
    assert error(DPMSolver2M(steps), schedule) < 0.5 * ddim_error
    assert error(Heun(steps // 2, LinspaceSpacing()), schedule) < 0.7 * ddim_error


def test_on_a_flow_euler_steps_along_the_velocity():
    schedule, x = FlowSchedule(), torch.randn(3, 4, dtype=torch.float64)
    t, t_next = 699, 499  # time 0.7 and 0.5
    posterior = exact_denoiser(schedule)(x, t, 0.0)
    velocity = (x - 0.3 * posterior.mean) / 0.7 - posterior.mean  # noise - z
    next_x = Euler().step(x, posterior, t, t_next, schedule, lambda: None)
    torch.testing.assert_close(next_x, x - 0.2 * velocity)

    # Heun from time 1 in steps of 0.2: the mean of the velocities at both ends
    trajectory = Heun(5).trajectory(exact_denoiser(schedule), schedule, RecordedNoise(torch.arange(3)), (4,))
    states = [x for x, _ in trajectory]
    start = states[0]  # time 0.8
    first = velocity_at(start, 799, schedule)
    predicted = start - 0.2 * first
    torch.testing.assert_close(states[1], start - 0.1 * (first + velocity_at(predicted, 599, schedule)))


def velocity_at(x, t, schedule):
    mean, time = exact_denoiser(schedule)(x, t, 0.0).mean, (t + 1) / schedule.steps
    return (x - (1 - time) * mean) / time - mean


@every_schedule
def test_euler_is_ddim_without_noise(schedule):
    euler, ddim = (
        sampler.run(exact_denoiser(schedule), schedule, RecordedNoise(torch.arange(5)), (4,))
        for sampler in (Euler(7), DDIM(7, spacing=TrailingSpacing()))
    )
    assert torch.equal(euler, ddim)


def test_dpm_solver_follows_its_paper():
    """Lu et al. 2022, algorithm 2, in their own terms: λ, h, r and D."""
    schedule, noise = CosineSchedule(), RecordedNoise(torch.arange(6))
    timesteps = TrailingSpacing().timesteps(5, schedule.steps)
    states = [x for x, _ in DPMSolver2M(5).trajectory(exact_denoiser(schedule), schedule, noise, (4,))]
    alpha, sigma = zip(*(schedule.at(t) for t in timesteps), strict=True)
    lam = [math.log(a / s) for a, s in zip(alpha[:-1], sigma[:-1], strict=True)]
    x, means = noise.normal(0, 4), []
    for i in range(1, 6):
        means.append(exact_denoiser(schedule)(x, timesteps[i - 1], 0.0).mean)
        if i == 5:
            x = means[-1]  # first order to clean: σ = 0
        else:
            h, estimate = lam[i] - lam[i - 1], means[-1]
            if i > 1:
                r = (lam[i - 1] - lam[i - 2]) / h
                estimate = (1 + 1 / (2 * r)) * means[-1] - 1 / (2 * r) * means[-2]
            x = sigma[i] / sigma[i - 1] * x - alpha[i] * math.expm1(-h) * estimate
        torch.testing.assert_close(states[i - 1], x)


@every_schedule
@pytest.mark.parametrize(("kind", "count"), [(Euler, 6), (DPMSolver2M, 6), (Heun, 11)])
def test_evaluations_timesteps_and_progress(kind, count, schedule):
    calls, noise = [], RecordedNoise(torch.arange(3))
    steps = list(kind(6).trajectory(exact_denoiser(schedule, calls), schedule, noise, (4,)))
    assert len(steps) == 6
    assert noise.steps == [0]  # only the initial noise
    assert len(calls) == count
    timesteps = TrailingSpacing().timesteps(6, schedule.steps)
    assert all(progress == pytest.approx(timesteps.index(t) / 5) for t, progress in calls)
    assert [t for t, _ in calls] == sorted((t for t, _ in calls), reverse=True)


@pytest.mark.parametrize(
    "sampler",
    [Euler(1), Heun(1), DPMSolver2M(1), Heun(4), DPMSolver2M(4)],
    ids=lambda s: f"{type(s).__name__}{s.steps}",
)
def test_any_number_of_steps_is_exact_for_a_single_point(sampler):
    point, noise = torch.tensor([0.3, -0.4], dtype=torch.float64), RecordedNoise(torch.arange(5))
    for schedule in SCHEDULES.values():
        samples = sampler.run(lambda x, t, p: Posterior(point.expand_as(x)), schedule, noise, (2,))
        torch.testing.assert_close(samples, point.expand(5, 2))


@every_schedule
@pytest.mark.parametrize("kind", [Euler, Heun, DPMSolver2M])
def test_temperature_scales_the_initial_noise(kind, schedule):
    """An exact denoiser of Gaussian data is affine, and so is all sampling: x(T) = x(0) + T (x(1) - x(0))."""
    cold, usual, hot = (
        kind(12, temperature=temperature).run(exact_denoiser(schedule), schedule, RecordedNoise(torch.arange(20)), (4,))
        for temperature in (0.0, 1.0, 1.7)
    )
    torch.testing.assert_close(hot, cold + 1.7 * (usual - cold))


@pytest.mark.parametrize("kind", [Heun, DPMSolver2M])
def test_estimates_are_clipped(kind):
    def denoise(x, t, progress):
        return Posterior(torch.full_like(x, 3.0))

    steps = list(kind(5, clip=1.0).trajectory(denoise, CosineSchedule(), RecordedNoise(torch.arange(2)), (4,)))
    assert all(float(mean.max()) == 1 for _, mean in steps)
    torch.testing.assert_close(steps[-1][0], torch.ones(2, 4, dtype=torch.float64))


@pytest.mark.parametrize(
    "sampler",
    [Heun(30), DPMSolver2M(60), DDIM(300, 1.0, TrailingSpacing()), Ancestral(300, TrailingSpacing())],
    ids=lambda sampler: type(sampler).__name__,
)
def test_flows_sample_a_mixture(sampler):
    """Two narrow modes at -1 and 2 with weights 0.3 and 0.7, by samplers with and without noise in their steps."""
    schedule, modes, weights, deviation = FlowSchedule(), torch.tensor([-1.0, 2.0]), torch.tensor([0.3, 0.7]), 0.2

    def denoise(x, t, progress):
        signal, sigma = schedule.at(t)
        variance = signal**2 * deviation**2 + sigma**2
        shares = (weights.log() - (x - signal * modes) ** 2 / (2 * variance)).softmax(1)  # (B, 2)
        means = modes + signal * deviation**2 / variance * (x - signal * modes)
        return Posterior((shares * means).sum(1, keepdim=True))

    samples = sampler.run(denoise, schedule, SeededNoise(torch.arange(4000)), (1,))[:, 0]
    high = samples > 0.5
    assert float(high.float().mean()) == pytest.approx(0.7, abs=0.025)
    assert float(samples[high].mean()) == pytest.approx(2.0, abs=0.03)
    assert float(samples[~high].std()) == pytest.approx(deviation, abs=0.03)


def test_trailing_spacing_goes_from_pure_noise_to_clean_in_equal_strides():
    assert TrailingSpacing().timesteps(25, 1000) == [*range(999, 0, -40), -1]
    assert TrailingSpacing().timesteps(1, 1000) == [999, -1]
    assert TrailingSpacing().timesteps(1000, 1000) == list(range(999, -2, -1))
    for steps in (3, 7, 30, 999):
        timesteps = TrailingSpacing().timesteps(steps, 1000)
        assert len(set(timesteps)) == steps + 1
    with pytest.raises(UserError, match="1 to 1000"):
        TrailingSpacing().timesteps(0, 1000)


def test_a_solver_may_end_at_timestep_zero():
    """Then Heun's last step averages two estimates as well, and DPM-Solver's last step is of first order."""
    schedule = LinearSchedule()
    for sampler in (Heun(50, OffsetSpacing()), DPMSolver2M(50, OffsetSpacing())):
        samples = sampler.run(exact_denoiser(schedule), schedule, RecordedNoise(torch.arange(2000)), (4,))
        torch.testing.assert_close(samples.mean(0), MEAN, rtol=0, atol=0.1)
        torch.testing.assert_close(samples.std(0), DEVIATION, rtol=0.1, atol=0)
