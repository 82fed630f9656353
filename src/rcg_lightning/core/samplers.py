"""Sampling from a denoiser: grids of timesteps, one step rule for each sampler, and the one loop."""

import math
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from rcg_lightning.config import ConfigMixin
from rcg_lightning.core.counter_rng import SeededNoise
from rcg_lightning.core.diffusion import Posterior, Transition, bridge_variance
from rcg_lightning.core.schedule import Schedule
from rcg_lightning.types import require

NoiseFn = Callable[[], Tensor]  # fresh standard normal noise of the shape of x
Denoise = Callable[[Tensor, int, float], Posterior]  # (x (B, *S), level k, progress in [0, 1]) -> Posterior


class TimestepSpacing(ConfigMixin):
    """Which levels a sampler visits: an explicit descending list whose last entry is where sampling ends."""

    @abstractmethod
    def timesteps(self, steps: int, total: int) -> list[int]:
        """Return the levels for ``steps`` of ``total``; -1 is clean."""


class LeadingSpacing(TimestepSpacing):
    """Every (total // steps)-th level from 0 up, then clean: 960, …, 40, 0, -1 for 25 of 1000 (ADM's "ddim25")."""

    def timesteps(self, steps: int, total: int) -> list[int]:
        return [*_strided(steps, total)[::-1], -1]


class OffsetSpacing(TimestepSpacing):
    """The stride grid plus one, down to level 0 rather than clean: 997, …, 5, 1, 0 for 250 of 1000 (official RDM, LDM).

    Where ``steps`` does not divide ``total`` there are more steps than asked for, as in the official code.
    """

    def timesteps(self, steps: int, total: int) -> list[int]:
        timesteps = [*(t + 1 for t in _strided(steps, total)[::-1]), 0]
        require(
            timesteps[0] < total, f"{steps} of {total} steps run out of the schedule with an OffsetSpacing: take fewer"
        )
        return timesteps


class LinspaceSpacing(TimestepSpacing):
    """Evenly spread and rounded, from total - 1 to 0, then clean (DiT and ADM with "250")."""

    def timesteps(self, steps: int, total: int) -> list[int]:
        require(2 <= steps <= total, f"an LinspaceSpacing takes 2 to {total} steps, not {steps}")
        stride = (total - 1) / (steps - 1)
        return [*(round(i * stride) for i in range(steps - 1, -1, -1)), -1]


class TrailingSpacing(TimestepSpacing):
    """From the noisiest level to clean in equal strides, rounded: 999, 959, …, 39, -1 for 25 of 1000 (flows, ODEs)."""

    def timesteps(self, steps: int, total: int) -> list[int]:
        require(1 <= steps <= total, f"sampling takes 1 to {total} steps, not {steps}")
        return [round(total * i / steps) - 1 for i in range(steps, -1, -1)]


def _strided(steps: int, total: int) -> list[int]:
    require(1 <= steps <= total, f"sampling takes 1 to {total} steps, not {steps}")
    return list(range(0, total, total // steps))


class Sampler(ConfigMixin):
    """How a generator that works in steps samples; each family of generators has its own kind.

    Args:
        steps: number of steps.
        temperature: factor of every random draw; below 1 samples vary less.
    """

    def __init__(self, steps: int, temperature: float = 1.0) -> None:
        require(0 <= temperature < math.inf, f"a temperature is 0 or more, not {temperature}")
        self.steps, self.temperature = steps, temperature


@dataclass(frozen=True)
class SamplingStep:
    """One step of a sampling loop, from level k to a cleaner level s.

    Attributes:
        here, there: what the denoiser says of x (B, *S) at level k, and at level s.
        noise: this step's draw.
        before: level and x̂₀ of the step before, None in the first.
        last: whether sampling ends at s.
    """

    t: int
    t_next: int
    schedule: Schedule
    here: Callable[[Tensor], Posterior]
    there: Callable[[Tensor], Posterior]
    noise: NoiseFn
    before: tuple[int, Tensor] | None
    last: bool


class DiffusionSampler(Sampler):
    """How many steps over which grid; subclasses give the step rule.

    Args:
        steps: number of steps.
        spacing: levels to visit.
        clip: bound |x̂₀| (1 for pixels, as ADM does), None for no bound.
        temperature: factor of every noise draw, of the start and of the steps.
    """

    def __init__(self, steps: int, spacing: TimestepSpacing, clip: float | None, temperature: float = 1.0) -> None:
        super().__init__(steps, temperature)
        self.spacing, self.clip = spacing, clip

    @abstractmethod
    def step(self, x: Tensor, posterior: Posterior, t: int, t_next: int, schedule: Schedule, noise: NoiseFn) -> Tensor:
        """Return x (B, *S) at level s, given x at level k and what the denoiser says of it."""

    def advance(self, x: Tensor, stride: SamplingStep) -> tuple[Tensor, Tensor]:
        """Return x at the next level, and x̂₀ at this one: one estimate and the step rule, unless overridden."""
        posterior = stride.here(x)
        return self.step(x, posterior, stride.t, stride.t_next, stride.schedule, stride.noise), posterior.mean

    def run(self, denoise: Denoise, schedule: Schedule, noise: SeededNoise, shape: tuple[int, ...]) -> Tensor:
        """Return samples (B, *shape), one for each seed of ``noise``."""
        return deque(self.trajectory(denoise, schedule, noise, shape), maxlen=1)[0][0]

    @torch.no_grad()
    def trajectory(
        self, denoise: Denoise, schedule: Schedule, noise: SeededNoise, shape: tuple[int, ...]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (x, x̂₀) after each step; draw 0 of the noise is the start, draw i + 1 belongs to step i."""
        timesteps = self.spacing.timesteps(self.steps, schedule.steps)
        final, heat = len(timesteps) - 2, self.temperature

        def estimate(i: int, x: Tensor) -> Posterior:
            return self._bounded(denoise(x, timesteps[i], i / max(final, 1)))

        x, before = heat * noise.normal(0, *shape), None
        for i, (t, t_next) in enumerate(pairwise(timesteps)):
            here, there = partial(estimate, i), partial(estimate, i + 1)
            x, mean = self.advance(
                x,
                SamplingStep(
                    t, t_next, schedule, here, there, lambda i=i: heat * noise.normal(i + 1, *shape), before, i == final
                ),
            )
            before = (t, mean)
            yield x, mean

    def _bounded(self, posterior: Posterior) -> Posterior:
        if self.clip is None:
            return posterior
        return Posterior(posterior.mean.clamp(-self.clip, self.clip), posterior.variance_mix)


class DDIM(DiffusionSampler):
    """Denoising diffusion implicit models (Song et al. 2021, eq. 12). eta 0 is deterministic, 1 adds DDPM's noise."""

    def __init__(
        self,
        steps: int = 50,
        eta: float = 0.0,
        spacing: TimestepSpacing | None = None,
        clip: float | None = None,
        temperature: float = 1.0,
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
    """Euler's method: on a flow the step x + (s - t) v along the velocity, elsewhere DDIM without noise."""

    def __init__(
        self,
        steps: int = 50,
        spacing: TimestepSpacing | None = None,
        clip: float | None = None,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(steps, 0.0, spacing or TrailingSpacing(), clip, temperature)


class Heun(Euler):
    """Heun's method, of second order: a step by the mean of the estimates at both of its ends (SiT, EDM).

    N steps evaluate the denoiser 2N - 1 times, the one to clean being Euler's. On a flow the mean is of velocities.
    """

    def advance(self, x: Tensor, stride: SamplingStep) -> tuple[Tensor, Tensor]:
        t, t_next, schedule = stride.t, stride.t_next, stride.schedule
        (signal, sigma), (signal_next, sigma_next) = schedule.at(t), schedule.at(t_next)
        first = stride.here(x).mean
        ahead = self.step(x, Posterior(first), t, t_next, schedule, stride.noise)
        if sigma_next == 0:
            return ahead, first
        second = stride.there(ahead).mean
        eps = (x - signal * first) / sigma + (ahead - signal_next * second) / sigma_next
        return x + (signal_next - signal) / 2 * (first + second) + (sigma_next - sigma) / 2 * eps, first


class DPMSolver2M(Euler):
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): second order by the estimate of the step before, deterministic.

    The first and the last step are of first order; so is the second of a flow, whose first level holds no signal.
    """

    def advance(self, x: Tensor, stride: SamplingStep) -> tuple[Tensor, Tensor]:
        t, t_next, schedule = stride.t, stride.t_next, stride.schedule
        mean = ahead = stride.here(x).mean
        if stride.before is not None and not stride.last:
            earlier, old = stride.before
            logs = [_half_log_snr(schedule, timestep) for timestep in (earlier, t, t_next)]
            ahead = mean + (logs[2] - logs[1]) / (logs[1] - logs[0]) / 2 * (mean - old)
        return self.step(x, Posterior(ahead), t, t_next, schedule, stride.noise), mean


def _half_log_snr(schedule: Schedule, t: int) -> float:
    signal, sigma = schedule.at(t)
    return math.log(signal / sigma) if signal > 0 else -math.inf


class Ancestral(DiffusionSampler):
    """Sampling from q(x_s | x_k, x̂₀) (DDPM; with a learned variance: improved DDPM). No noise in the last step."""

    def __init__(
        self,
        steps: int = 250,
        spacing: TimestepSpacing | None = None,
        clip: float | None = None,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(steps, spacing or LinspaceSpacing(), clip, temperature)

    def step(self, x: Tensor, posterior: Posterior, t: int, t_next: int, schedule: Schedule, noise: NoiseFn) -> Tensor:
        if t_next < 0:
            return posterior.mean
        transition = Transition.between(schedule, t, t_next)
        mean = transition.from_clean * posterior.mean + transition.from_noisy * x
        half = 0.5 * transition.log_variance(posterior.variance_mix)
        deviation = half.to(x.dtype).exp() if isinstance(half, Tensor) else math.exp(half)
        return mean + deviation * noise()
