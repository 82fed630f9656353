"""Timesteps: how much signal and how much noise a noised example holds.

An example at level k in [0, T) is ``signal(t) * z + noise(t) * eps``; level -1 is clean. Variance-preserving diffusion
has signal² + noise² = 1 and whole levels. A flow's time t in [0, 1] is level T t - 1, so it has levels in between.
"""

import math
from abc import abstractmethod

import torch
from torch import Tensor

from rcg_lightning.config import ConfigMixin
from rcg_lightning.types import require


class Schedule(ConfigMixin):
    """Levels of noise.

    Args:
        steps: T, the number of whole timesteps: those that samplers visit.
    """

    def __init__(self, steps: int = 1000) -> None:
        require(steps > 0, f"a schedule needs at least one step, not {steps}")
        self.steps = steps

    @abstractmethod
    def at(self, t: int) -> tuple[float, float]:
        """Return (signal, noise) of a whole level in [-1, T), in double precision."""

    @abstractmethod
    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (signal, noise), each (B,) float32, of levels k (B,) in [-1, T)."""

    @abstractmethod
    def timesteps(self, u: Tensor) -> Tensor:
        """Return the levels (B,) at fractions u (B,) in [0, 1] of the way from the cleanest to the noisiest."""


class VariancePreserving(Schedule):
    """Levels of diffusion, signal² + noise² = 1. Tables are float64 on the CPU and used as float32; levels are int64.

    Args:
        steps: T, the number of timesteps.
    """

    def __init__(self, steps: int = 1000) -> None:
        super().__init__(steps)
        with torch.device("cpu"):  # MPS has no float64, and a network may be laid out on the meta device
            alphas_bar = torch.cumprod(1 - self.betas(), 0)
            # (T + 1,), entry k + 1 is level k
            self.alphas_bar = torch.cat([torch.ones(1, dtype=torch.float64), alphas_bar])
        self._bars: list[float] = self.alphas_bar.tolist()
        self._tables: dict[torch.device, Tensor] = {}

    @abstractmethod
    def betas(self) -> Tensor:
        """Return (T,) float64: the variance added from one level to the next."""

    def alpha_bar(self, t: int) -> float:
        """Return signal² at level k, -1 being clean."""
        return self._bars[t + 1]

    def at(self, t: int) -> tuple[float, float]:
        bar = self.alpha_bar(t)
        return math.sqrt(bar), math.sqrt(1 - bar)

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        if t.device not in self._tables:
            tables = torch.stack([self.alphas_bar.sqrt(), (1 - self.alphas_bar).sqrt()])
            self._tables[t.device] = tables.float().to(t.device)
        signal, noise = self._tables[t.device][:, t + 1]
        return signal, noise

    def timesteps(self, u: Tensor) -> Tensor:
        return (u * self.steps).long().clamp_(max=self.steps - 1)


class LinearSchedule(VariancePreserving):
    """Betas linear in the step, 1e-4 to 0.02 (DDPM, DiT, ADM)."""

    def __init__(self, steps: int = 1000, start: float = 1e-4, end: float = 0.02) -> None:
        self.start, self.end = start, end
        super().__init__(steps)

    def betas(self) -> Tensor:
        return torch.linspace(self.start, self.end, self.steps, dtype=torch.float64)


class ScaledLinearSchedule(VariancePreserving):
    """The square root of beta is linear, from √0.0015 to √0.0195 (official RDM and LDM, where it is called linear)."""

    def __init__(self, steps: int = 1000, start: float = 0.0015, end: float = 0.0195) -> None:
        self.start, self.end = start, end
        super().__init__(steps)

    def betas(self) -> Tensor:
        return torch.linspace(self.start**0.5, self.end**0.5, self.steps, dtype=torch.float64) ** 2


class CosineSchedule(VariancePreserving):
    """ᾱ follows a squared cosine (Nichol & Dhariwal 2021, eq. 17), betas capped at 0.999."""

    def __init__(self, steps: int = 1000, offset: float = 0.008) -> None:
        self.offset = offset
        super().__init__(steps)

    def betas(self) -> Tensor:
        time = torch.arange(self.steps + 1, dtype=torch.float64) / self.steps
        alphas_bar = torch.cos((time + self.offset) / (1 + self.offset) * math.pi / 2) ** 2
        return (1 - alphas_bar[1:] / alphas_bar[:-1]).clamp(max=0.999)


class FlowSchedule(Schedule):
    """The straight path of flow matching (SiT, rectified flow): signal 1 - t, noise t, for t in [0, 1].

    Level k is t = (k + 1) / T, as a real number: training draws any t, samplers visit whole levels. The noisiest level,
    T - 1, holds no signal at all, so the noise cannot be what a network predicts; ``FlowVelocity`` is what suits.
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
    """How often training visits the levels: a map of the fractions that it draws evenly."""

    @abstractmethod
    def __call__(self, u: Tensor) -> Tensor:
        """Return fractions (B,) in [0, 1] of the way to the noisiest level for uniform u (B,): a quantile function."""


class LogitNormal(TimestepDistribution):
    """The logit of the fraction is normal: the middle of the way is visited most (Esser et al. 2024, SD3).

    Args:
        mean: of the logit; below 0 favours clean levels.
        deviation: of the logit; small ones keep to the middle.
    """

    def __init__(self, mean: float = 0.0, deviation: float = 1.0) -> None:
        require(deviation > 0, f"a deviation is positive, not {deviation}")
        self.mean, self.deviation = mean, deviation

    def __call__(self, u: Tensor) -> Tensor:
        return torch.sigmoid(self.mean + self.deviation * torch.special.ndtri(u))
