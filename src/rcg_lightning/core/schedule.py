"""Noise levels: how much signal and how much noise a noised example holds.

An example at level k in [0, T) is ``signal(k) * z + noise(k) * eps``, signal² + noise² = 1; level -1 is clean.
"""

import math
from abc import abstractmethod

import torch
from torch import Tensor

from rcg_lightning.described import Described
from rcg_lightning.types import require


class Schedule(Described):
    """Levels of variance-preserving diffusion. Tables are float64 on the CPU and used as float32.

    Args:
        steps: T, the number of noise levels.
    """

    def __init__(self, steps: int = 1000) -> None:
        require(steps > 0, f"a schedule needs at least one step, not {steps}")
        self.steps = steps
        alphas_bar = torch.cumprod(1 - self.betas(), 0)
        self.alphas_bar = torch.cat(
            [torch.ones(1, dtype=torch.float64), alphas_bar]
        )  # (T + 1,), entry k + 1 is level k
        self._tables: dict[torch.device, Tensor] = {}

    @abstractmethod
    def betas(self) -> Tensor:
        """Return (T,) float64: the variance added from one level to the next."""

    def alpha_bar(self, k: int) -> float:
        """Return signal² at level k, -1 being clean."""
        return float(self.alphas_bar[k + 1])

    def scales(self, k: Tensor) -> tuple[Tensor, Tensor]:
        """Return (signal, noise), each (B,) float32, of levels k (B,) int64 in [-1, T)."""
        if k.device not in self._tables:
            tables = torch.stack([self.alphas_bar.sqrt(), (1 - self.alphas_bar).sqrt()])
            self._tables[k.device] = tables.float().to(k.device)
        signal, noise = self._tables[k.device][:, k + 1]
        return signal, noise

    def snr(self) -> Tensor:
        """Return (T,) float64: signal-to-noise ratio ᾱ / (1 - ᾱ) of each level."""
        return self.alphas_bar[1:] / (1 - self.alphas_bar[1:])


class LinearSchedule(Schedule):
    """Betas linear in the step, 1e-4 to 0.02 (DDPM, DiT, ADM)."""

    def __init__(self, steps: int = 1000, start: float = 1e-4, end: float = 0.02) -> None:
        self.start, self.end = start, end
        super().__init__(steps)

    def betas(self) -> Tensor:
        return torch.linspace(self.start, self.end, self.steps, dtype=torch.float64)


class ScaledLinearSchedule(Schedule):
    """The square root of beta is linear, from √0.0015 to √0.0195 (official RDM and LDM, where it is called linear)."""

    def __init__(self, steps: int = 1000, start: float = 0.0015, end: float = 0.0195) -> None:
        self.start, self.end = start, end
        super().__init__(steps)

    def betas(self) -> Tensor:
        return torch.linspace(self.start**0.5, self.end**0.5, self.steps, dtype=torch.float64) ** 2


class CosineSchedule(Schedule):
    """ᾱ follows a squared cosine (Nichol & Dhariwal 2021, eq. 17), betas capped at 0.999."""

    def __init__(self, steps: int = 1000, offset: float = 0.008) -> None:
        self.offset = offset
        super().__init__(steps)

    def betas(self) -> Tensor:
        t = torch.arange(self.steps + 1, dtype=torch.float64) / self.steps
        alphas_bar = torch.cos((t + self.offset) / (1 + self.offset) * math.pi / 2) ** 2
        return (1 - alphas_bar[1:] / alphas_bar[:-1]).clamp(max=0.999)
