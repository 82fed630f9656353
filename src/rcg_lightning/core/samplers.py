"""Sampling from a denoiser: timestep spacings, one step rule for each sampler, and the sampling loop."""

import math
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from rcg_lightning.arguments import NonNegativeFloat, PositiveFloat, Timesteps, UnitInterval
from rcg_lightning.config import ConfigMixin
from rcg_lightning.core.counter_rng import SeededNoise
from rcg_lightning.core.diffusion import Posterior, Transition, bridge_variance
from rcg_lightning.core.schedule import Schedule
from rcg_lightning.types import require

NoiseFn = Callable[[], Tensor]  # standard normal noise of the shape of x
Denoise = Callable[[Tensor, int, float], Posterior]  # (x (B, *S), timestep t, progress in [0, 1]) -> Posterior


class TimestepSpacing(ConfigMixin):
    """The timesteps that a sampler visits: an explicit descending list, whose last entry is where sampling ends."""

    @abstractmethod
    def timesteps(self, steps: int, total: int) -> list[int]:
        """Return the timesteps for ``steps`` of ``total``; -1 is clean."""


class LeadingSpacing(TimestepSpacing):
    """Every (total // steps)-th timestep from 0 up, then clean: 960, …, 40, 0, -1 for 25 of 1000 (ADM's "ddim25")."""

    def timesteps(self, steps: int, total: int) -> list[int]:
        return [*_strided(steps, total)[::-1], -1]


class OffsetSpacing(TimestepSpacing):
    """The leading timesteps plus one, down to 0 instead of clean: 997, …, 5, 1, 0 for 250 of 1000 (official RDM, LDM).

    If ``steps`` does not divide ``total`` there are more steps than requested, as in the official code.
    """

    def timesteps(self, steps: int, total: int) -> list[int]:
        timesteps = [*(t + 1 for t in _strided(steps, total)[::-1]), 0]
        require(
            timesteps[0] < total, f"OffsetSpacing: {steps} of {total} steps run out of the schedule: take fewer steps"
        )
        return timesteps


class LinspaceSpacing(TimestepSpacing):
    """Equal strides, rounded, from total - 1 to 0, then clean (DiT and ADM with "250")."""

    def timesteps(self, steps: int, total: int) -> list[int]:
        require(2 <= steps <= total, f"LinspaceSpacing takes 2 to {total} steps, not {steps}")
        stride = (total - 1) / (steps - 1)
        return [*(round(i * stride) for i in range(steps - 1, -1, -1)), -1]


class TrailingSpacing(TimestepSpacing):
    """Equal strides, rounded, from total - 1 to clean: 999, 959, …, 39, -1 for 25 of 1000 (flows, ODE solvers)."""

    def timesteps(self, steps: int, total: int) -> list[int]:
        require(1 <= steps <= total, f"sampling takes 1 to {total} steps, not {steps}")
        return [round(total * i / steps) - 1 for i in range(steps, -1, -1)]


def _strided(steps: int, total: int) -> list[int]:
    require(1 <= steps <= total, f"sampling takes 1 to {total} steps, not {steps}")
    return list(range(0, total, total // steps))


class Sampler(ConfigMixin):
    """Settings of sampling in steps; each family of generators has its own subclass.

    Args:
        steps: number of steps.
        temperature: factor of all noise; below 1 samples are less diverse.
    """

    def __init__(self, steps: Timesteps, temperature: NonNegativeFloat = 1.0) -> None:
        self.steps, self.temperature = steps, temperature


@dataclass(frozen=True)
class SamplingStep:
    """One step of a sampling loop, from timestep t to a cleaner t_next.

    Attributes:
        denoise, denoise_next: x (B, *S) at timestep t, or at t_next -> Posterior.
        noise: returns this step's noise.
        previous: timestep and x̂₀ of the previous step, None in the first.
        last: whether sampling ends at t_next.
    """

    t: int
    t_next: int
    schedule: Schedule
    denoise: Callable[[Tensor], Posterior]
    denoise_next: Callable[[Tensor], Posterior]
    noise: NoiseFn
    previous: tuple[int, Tensor] | None
    last: bool


class DiffusionSampler(Sampler):
    """The sampling loop of a diffusion model. A subclass adds its step rule.

    Args:
        steps: number of steps.
        spacing: timesteps to visit.
        clip: largest |x̂₀| (1 for pixels, as ADM does), None for no bound.
        temperature: factor of the initial noise and of the noise in each step.
    """

    def __init__(
        self,
        steps: Timesteps,
        spacing: TimestepSpacing,
        clip: PositiveFloat | None,
        temperature: NonNegativeFloat = 1.0,
    ) -> None:
        super().__init__(steps, temperature)
        self.spacing, self.clip = spacing, clip

    @abstractmethod
    def step(self, x: Tensor, posterior: Posterior, t: int, t_next: int, schedule: Schedule, noise: NoiseFn) -> Tensor:
        """Return x (B, *S) at timestep t_next from x at t and its posterior."""

    def advance(self, x: Tensor, current: SamplingStep) -> tuple[Tensor, Tensor]:
        """Return x at t_next and x̂₀ at t. By default: denoise once and apply the step rule."""
        posterior = current.denoise(x)
        return self.step(x, posterior, current.t, current.t_next, current.schedule, current.noise), posterior.mean

    def run(self, denoise: Denoise, schedule: Schedule, noise: SeededNoise, shape: tuple[int, ...]) -> Tensor:
        """Return samples (B, *shape), one for each seed of ``noise``."""
        return deque(self.trajectory(denoise, schedule, noise, shape), maxlen=1)[0][0]

    @torch.no_grad()
    def trajectory(
        self, denoise: Denoise, schedule: Schedule, noise: SeededNoise, shape: tuple[int, ...]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (x, x̂₀) after each step. Step 0 of ``noise`` is the initial noise; its step i + 1 is used in step i."""
        timesteps = self.spacing.timesteps(self.steps, schedule.steps)
        final = len(timesteps) - 2

        def denoise_at(i: int, x: Tensor) -> Posterior:
            return self._clipped(denoise(x, timesteps[i], i / max(final, 1)))

        def scaled_noise(i: int) -> Tensor:
            return self.temperature * noise.normal(i, *shape)

        x, previous = scaled_noise(0), None
        for i, (t, t_next) in enumerate(pairwise(timesteps)):
            here, ahead, step_noise = partial(denoise_at, i), partial(denoise_at, i + 1), partial(scaled_noise, i + 1)
            x, mean = self.advance(
                x, SamplingStep(t, t_next, schedule, here, ahead, step_noise, previous, last=i == final)
            )
            previous = (t, mean)
            yield x, mean

    def _clipped(self, posterior: Posterior) -> Posterior:
        if self.clip is None:
            return posterior
        return Posterior(posterior.mean.clamp(-self.clip, self.clip), posterior.variance_mix)


class DDIM(DiffusionSampler):
    """Denoising diffusion implicit models (Song et al. 2021, eq. 12): deterministic for η = 0, DDPM for η = 1."""

    def __init__(
        self,
        steps: Timesteps = 50,
        eta: UnitInterval = 0.0,
        spacing: TimestepSpacing | None = None,
        clip: PositiveFloat | None = None,
        temperature: NonNegativeFloat = 1.0,
    ) -> None:
        super().__init__(steps, spacing or LeadingSpacing(), clip, temperature)
        self.eta = eta

    def step(self, x: Tensor, posterior: Posterior, t: int, t_next: int, schedule: Schedule, noise: NoiseFn) -> Tensor:
        (signal, sigma), (signal_next, sigma_next) = schedule.at(t), schedule.at(t_next)
        eps = (x - signal * posterior.mean) / sigma
        deviation = self.eta * math.sqrt(bridge_variance(schedule, t, t_next))
        x = signal_next * posterior.mean + math.sqrt(max(sigma_next**2 - deviation**2, 0.0)) * eps
        return x + deviation * noise() if deviation > 0 else x


class Euler(DDIM):
    """Euler's method: on a flow a step along the velocity, x + (time_next - time) v; otherwise DDIM without noise."""

    def __init__(
        self,
        steps: Timesteps = 50,
        spacing: TimestepSpacing | None = None,
        clip: PositiveFloat | None = None,
        temperature: NonNegativeFloat = 1.0,
    ) -> None:
        super().__init__(steps, 0.0, spacing or TrailingSpacing(), clip, temperature)


class Heun(Euler):
    """Heun's method, of second order: a step with the mean of the estimates at both of its ends (SiT, EDM).

    N steps evaluate the denoiser 2N - 1 times, as the step to clean is Euler's. On a flow the mean is that of the
    velocities.
    """

    def advance(self, x: Tensor, current: SamplingStep) -> tuple[Tensor, Tensor]:
        t, t_next, schedule = current.t, current.t_next, current.schedule
        (signal, sigma), (signal_next, sigma_next) = schedule.at(t), schedule.at(t_next)
        first = current.denoise(x).mean
        ahead = self.step(x, Posterior(first), t, t_next, schedule, current.noise)
        if sigma_next == 0:
            return ahead, first
        second = current.denoise_next(ahead).mean
        eps = (x - signal * first) / sigma + (ahead - signal_next * second) / sigma_next
        return x + (signal_next - signal) / 2 * (first + second) + (sigma_next - sigma) / 2 * eps, first


class DPMSolver2M(Euler):
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): deterministic, of second order by the previous step's estimate.

    The first and the last step are of first order. So is the second step of a flow, whose first timestep has no signal.
    """

    def advance(self, x: Tensor, current: SamplingStep) -> tuple[Tensor, Tensor]:
        t, t_next, schedule = current.t, current.t_next, current.schedule
        mean = extrapolated = current.denoise(x).mean
        if current.previous is not None and not current.last:
            t_previous, mean_previous = current.previous
            logs = [_half_log_snr(schedule, timestep) for timestep in (t_previous, t, t_next)]
            extrapolated = mean + (logs[2] - logs[1]) / (logs[1] - logs[0]) / 2 * (mean - mean_previous)
        return self.step(x, Posterior(extrapolated), t, t_next, schedule, current.noise), mean


def _half_log_snr(schedule: Schedule, t: int) -> float:
    signal, sigma = schedule.at(t)
    return math.log(signal / sigma) if signal > 0 else -math.inf


class Ancestral(DiffusionSampler):
    """DDPM sampling from q(x_t_next | x_t, x̂₀); improved DDPM if the variance is learned. No noise in the last step."""

    def __init__(
        self,
        steps: Timesteps = 250,
        spacing: TimestepSpacing | None = None,
        clip: PositiveFloat | None = None,
        temperature: NonNegativeFloat = 1.0,
    ) -> None:
        super().__init__(steps, spacing or LinspaceSpacing(), clip, temperature)

    def step(self, x: Tensor, posterior: Posterior, t: int, t_next: int, schedule: Schedule, noise: NoiseFn) -> Tensor:
        if t_next < 0:
            return posterior.mean
        transition = Transition.between(schedule, t, t_next)
        mean = transition.from_clean * posterior.mean + transition.from_noisy * x
        log_deviation = 0.5 * transition.log_variance(posterior.variance_mix)
        deviation = log_deviation.to(x.dtype).exp() if isinstance(log_deviation, Tensor) else math.exp(log_deviation)
        return mean + deviation * noise()
