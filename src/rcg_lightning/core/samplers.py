"""Sampling from a denoiser: grids of noise levels, one step rule for each sampler, and the one loop."""

import math
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from rcg_lightning.core.diffusion import Posterior, Transition
from rcg_lightning.core.random import SeededNoise
from rcg_lightning.core.schedule import Schedule
from rcg_lightning.described import Described
from rcg_lightning.types import require

Draw = Callable[[], Tensor]  # fresh standard normal noise of the shape of x
Denoise = Callable[[Tensor, int, float], Posterior]  # (x (B, *S), level k, progress in [0, 1]) -> Posterior


class Grid(Described):
    """Which levels a sampler visits: an explicit descending list whose last entry is where sampling ends."""

    @abstractmethod
    def levels(self, steps: int, total: int) -> list[int]:
        """Return the levels for ``steps`` of ``total``; -1 is clean."""


class StrideGrid(Grid):
    """Every (total // steps)-th level from 0 up, then clean: 960, …, 40, 0, -1 for 25 of 1000 (ADM's "ddim25")."""

    def levels(self, steps: int, total: int) -> list[int]:
        return [*_strided(steps, total)[::-1], -1]


class OffsetGrid(Grid):
    """The stride grid plus one, down to level 0 rather than clean: 997, …, 5, 1, 0 for 250 of 1000 (official RDM, LDM).

    Where ``steps`` does not divide ``total`` there are more steps than asked for, as in the official code.
    """

    def levels(self, steps: int, total: int) -> list[int]:
        levels = [*(k + 1 for k in _strided(steps, total)[::-1]), 0]
        require(levels[0] < total, f"{steps} of {total} steps run out of the schedule with an OffsetGrid: take fewer")
        return levels


class EvenGrid(Grid):
    """Evenly spread and rounded, from total - 1 to 0, then clean (DiT and ADM with "250")."""

    def levels(self, steps: int, total: int) -> list[int]:
        require(2 <= steps <= total, f"an EvenGrid takes 2 to {total} steps, not {steps}")
        stride = (total - 1) / (steps - 1)
        return [*(round(i * stride) for i in range(steps - 1, -1, -1)), -1]


def _strided(steps: int, total: int) -> list[int]:
    require(1 <= steps <= total, f"sampling takes 1 to {total} steps, not {steps}")
    return list(range(0, total, total // steps))


class Sampler(Described):
    """How a generator that works in steps samples; each family of generators has its own kind.

    Args:
        steps: number of steps.
        temperature: factor of every random draw; below 1 samples vary less.
    """

    def __init__(self, steps: int, temperature: float = 1.0) -> None:
        require(0 <= temperature < math.inf, f"a temperature is 0 or more, not {temperature}")
        self.steps, self.temperature = steps, temperature


class DiffusionSampler(Sampler):
    """How many steps over which grid; subclasses give the step rule.

    Args:
        steps: number of steps.
        grid: levels to visit.
        clip: bound |x̂₀| (1 for pixels, as ADM does), None for no bound.
        temperature: factor of every noise draw, of the start and of the steps.
    """

    def __init__(self, steps: int, grid: Grid, clip: float | None, temperature: float = 1.0) -> None:
        super().__init__(steps, temperature)
        self.grid, self.clip = grid, clip

    @abstractmethod
    def step(self, x: Tensor, posterior: Posterior, k: int, s: int, schedule: Schedule, noise: Draw) -> Tensor:
        """Return x (B, *S) at level s, given x at level k and what the denoiser says of it."""

    def run(self, denoise: Denoise, schedule: Schedule, noise: SeededNoise, shape: tuple[int, ...]) -> Tensor:
        """Return samples (B, *shape), one for each seed of ``noise``."""
        return deque(self.trajectory(denoise, schedule, noise, shape), maxlen=1)[0][0]

    @torch.no_grad()
    def trajectory(
        self, denoise: Denoise, schedule: Schedule, noise: SeededNoise, shape: tuple[int, ...]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (x, x̂₀) after each step; draw 0 of the noise is the start, draw i + 1 belongs to step i."""
        levels = self.grid.levels(self.steps, schedule.steps)
        heat = self.temperature
        x = heat * noise.normal(0, *shape)
        for i, (k, s) in enumerate(pairwise(levels)):
            posterior = self._bounded(denoise(x, k, i / max(len(levels) - 2, 1)))
            x = self.step(x, posterior, k, s, schedule, lambda i=i: heat * noise.normal(i + 1, *shape))
            yield x, posterior.mean

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
        grid: Grid | None = None,
        clip: float | None = None,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(steps, grid or StrideGrid(), clip, temperature)
        self.eta = eta

    def step(self, x: Tensor, posterior: Posterior, k: int, s: int, schedule: Schedule, noise: Draw) -> Tensor:
        bar_k, bar_s = schedule.alpha_bar(k), schedule.alpha_bar(s)
        eps = (x - bar_k**0.5 * posterior.mean) / (1 - bar_k) ** 0.5
        sigma = self.eta * ((1 - bar_s) / (1 - bar_k) * (1 - bar_k / bar_s)) ** 0.5
        x = bar_s**0.5 * posterior.mean + max(1 - bar_s - sigma**2, 0.0) ** 0.5 * eps
        return x + sigma * noise() if sigma > 0 else x


class Ancestral(DiffusionSampler):
    """Sampling from q(x_s | x_k, x̂₀) (DDPM; with a learned variance: improved DDPM). No noise in the last step."""

    def __init__(
        self, steps: int = 250, grid: Grid | None = None, clip: float | None = None, temperature: float = 1.0
    ) -> None:
        super().__init__(steps, grid or EvenGrid(), clip, temperature)

    def step(self, x: Tensor, posterior: Posterior, k: int, s: int, schedule: Schedule, noise: Draw) -> Tensor:
        if s < 0:
            return posterior.mean
        transition = Transition.between(schedule, k, s)
        mean = transition.from_clean * posterior.mean + transition.from_noisy * x
        log_variance = transition.log_variance(posterior.variance_mix)
        deviation = torch.exp(0.5 * torch.as_tensor(log_variance, device=x.device, dtype=x.dtype))
        return mean + deviation * noise()
