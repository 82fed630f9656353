"""Noise schedules: how much signal and how much noise an example has at each timestep.

An example at timestep t in [0, T) is ``signal(t) * z + sigma(t) * noise``; timestep -1 is clean. Variance-preserving
diffusion has signal² + sigma² = 1 and integer timesteps. A flow has real timesteps: its time in [0, 1] is (t + 1) / T.
"""

import math
from abc import abstractmethod
from typing import Annotated

import torch
from torch import Tensor

from rcg_lightning.arguments import BelowOne, PositiveFloat, Range, Timesteps
from rcg_lightning.config import ConfigMixin
from rcg_lightning.core.transfers import to_device

Beta = Annotated[float, Range(0, 1, above=True, below=True)]  # the variance added at a timestep


class Schedule(ConfigMixin):
    """Signal and noise at each timestep.

    Args:
        steps: T, the number of integer timesteps, which are those that samplers visit.
    """

    def __init__(self, steps: Timesteps = 1000) -> None:
        self.steps = steps

    @abstractmethod
    def at(self, t: int) -> tuple[float, float]:
        """Return (signal, sigma) at an integer timestep in [-1, T), in double precision."""

    @abstractmethod
    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (signal, sigma), each (B,) float32, at timesteps t (B,) in [-1, T)."""

    @abstractmethod
    def timesteps(self, u: Tensor) -> Tensor:
        """Return timesteps (B,) for u (B,) in [0, 1]: 0 is the cleanest, 1 the noisiest."""


class VariancePreserving(Schedule):
    """Diffusion with signal² + sigma² = 1 and int64 timesteps. Tables are float64 on the CPU and used as float32.

    Args:
        steps: T, the number of timesteps.
    """

    def __init__(self, steps: Timesteps = 1000) -> None:
        super().__init__(steps)
        with torch.device("cpu"):  # MPS has no float64, and a network may be built on the meta device
            alphas_bar = torch.cumprod(1 - self.betas(), 0)
            # (T + 1,), entry t + 1 is timestep t
            self.alphas_bar = torch.cat([torch.ones(1, dtype=torch.float64), alphas_bar])
        self._bars: list[float] = self.alphas_bar.tolist()
        self._tables: dict[torch.device, Tensor] = {}

    @abstractmethod
    def betas(self) -> Tensor:
        """Return (T,) float64: the variance added at each timestep."""

    def alpha_bar(self, t: int) -> float:
        """Return ᾱ = signal² at timestep t; -1 is clean."""
        return self._bars[t + 1]

    def at(self, t: int) -> tuple[float, float]:
        bar = self.alpha_bar(t)
        return math.sqrt(bar), math.sqrt(1 - bar)

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        if t.device not in self._tables:
            tables = torch.stack([self.alphas_bar.sqrt(), (1 - self.alphas_bar).sqrt()])
            self._tables[t.device] = to_device(tables.float(), t.device)
        signal, sigma = self._tables[t.device][:, t + 1]
        return signal, sigma

    def timesteps(self, u: Tensor) -> Tensor:
        return (u * self.steps).long().clamp_(max=self.steps - 1)


class LinearSchedule(VariancePreserving):
    """β linear in the timestep, from 1e-4 to 0.02 (DDPM, DiT, ADM)."""

    def __init__(self, steps: Timesteps = 1000, start: Beta = 1e-4, end: Beta = 0.02) -> None:
        self.start, self.end = start, end
        super().__init__(steps)

    def betas(self) -> Tensor:
        return torch.linspace(self.start, self.end, self.steps, dtype=torch.float64)


class ScaledLinearSchedule(VariancePreserving):
    """√β linear in the timestep, from √0.0015 to √0.0195 (official RDM and LDM, which call it linear)."""

    def __init__(self, steps: Timesteps = 1000, start: Beta = 0.0015, end: Beta = 0.0195) -> None:
        self.start, self.end = start, end
        super().__init__(steps)

    def betas(self) -> Tensor:
        return torch.linspace(self.start**0.5, self.end**0.5, self.steps, dtype=torch.float64) ** 2


class CosineSchedule(VariancePreserving):
    """ᾱ follows a squared cosine (Nichol & Dhariwal 2021, eq. 17); β is at most 0.999."""

    def __init__(self, steps: Timesteps = 1000, offset: BelowOne = 0.008) -> None:
        self.offset = offset
        super().__init__(steps)

    def betas(self) -> Tensor:
        time = torch.arange(self.steps + 1, dtype=torch.float64) / self.steps
        alphas_bar = torch.cos((time + self.offset) / (1 + self.offset) * math.pi / 2) ** 2
        return (1 - alphas_bar[1:] / alphas_bar[:-1]).clamp(max=0.999)


class FlowSchedule(Schedule):
    """The straight path of flow matching (SiT, rectified flow): signal 1 - time, sigma time, for time in [0, 1].

    Time is (t + 1) / T. Timesteps are real: training uses any of them, samplers visit the integers. The noisiest
    timestep, T - 1, has no signal at all, so a network cannot predict the noise; ``FlowVelocity`` suits.
    """

    def at(self, t: int) -> tuple[float, float]:
        time = (t + 1) / self.steps
        return 1 - time, time

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        time = (t.float() + 1) / self.steps
        return 1 - time, time

    def timesteps(self, u: Tensor) -> Tensor:
        return u * self.steps - 1


class TimestepDistribution(ConfigMixin):
    """Distribution of the timesteps in training, as a function of uniform random numbers."""

    @abstractmethod
    def __call__(self, u: Tensor) -> Tensor:
        """Quantile function: uniform u (B,) -> (B,) in [0, 1], where 0 is the cleanest timestep and 1 the noisiest."""


class LogitNormal(TimestepDistribution):
    """Logit-normal timesteps: the middle ones are the most frequent (Esser et al. 2024, SD3).

    Args:
        mean: of the logit; below 0 favours clean timesteps.
        deviation: standard deviation of the logit; a small one favours the middle.
    """

    def __init__(self, mean: float = 0.0, deviation: PositiveFloat = 1.0) -> None:
        self.mean, self.deviation = mean, deviation

    def __call__(self, u: Tensor) -> Tensor:
        return torch.sigmoid(self.mean + self.deviation * torch.special.ndtri(u))
